"""The original beside its own variants: redrawn for the noise floor, or with a component swapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdcompress.report import statistics
from sdcompress.report.pairing import by_prompt

LABEL = "the original against itself"
SOURCES = {"seed": "another seed", "bfloat16": "in bfloat16", "batch": "in batches of 2"}


def variant_samples(
    records: Sequence[Mapping[str, Any]], variant: str, samples: Sequence[Mapping[str, Any]], scorer: str | None
) -> list[dict[str, Any]]:
    """One entry per picture of the variant that neither it nor the original had blocked: what the judge found."""
    originals = {sample["index"]: sample for sample in samples}
    drawn = {r["index"]: r for r in records if r["kind"] == "variant" and r["variant"] == variant}
    scores = {
        r["index"]: r
        for r in records
        if r["kind"] == "variant_score" and r["variant"] == variant and r["scorer"] == scorer
    }
    found = []
    for index in sorted(drawn.keys() & scores.keys() & originals.keys()):
        record, score, original = drawn[index], scores[index], originals[index]
        if record["blocked"] or original["original"]["blocked"]:
            continue
        clip = score["clip_score"]
        entry = {
            "index": index,
            "prompt": original["prompt"],
            "seed": record.get("seed", original["seed"]),
            "clip_score_difference": None if clip["compressed"] is None else clip["compressed"] - clip["original"],
            **{name: score[name] for name in ("psnr_db", "identical", "ssim")},
            "metrics": dict(score.get("metrics", {})),
            "latency_s": record["latency_s"],
        }
        if "original_latency_s" in record:
            entry["original_latency_s"] = record["original_latency_s"]
        found.append(entry)
    return found


def describe_variant(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How a variant's pictures differ from the original's: means and 95 % intervals, in the report's shapes."""
    differing = [entry for entry in found if entry["psnr_db"] is not None]
    described: dict[str, Any] = {
        "pictures": len(found),
        "identical": sum(entry["identical"] for entry in found),
        "psnr_db": _mean(differing, [entry["psnr_db"] for entry in differing]),
    }
    scored = [entry for entry in found if entry["clip_score_difference"] is not None]
    clip = _mean(scored, [entry["clip_score_difference"] for entry in scored])
    described["clip_score"] = {"difference": clip["mean"], "interval_95": clip["interval_95"]}
    comparable = [entry for entry in found if entry["ssim"] is not None]
    described["ssim"] = _mean(comparable, [entry["ssim"] for entry in comparable])
    names = dict.fromkeys(name for entry in found for name in entry["metrics"])
    for name in names:
        having = [entry for entry in found if entry["metrics"].get(name) is not None]
        if having:
            described[name] = _mean(having, [entry["metrics"][name] for entry in having])
    return described


def describe_noise_floor(
    records: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    scorer: str | None,
    sources: Sequence[str],
    not_measured: Mapping[str, str],
) -> dict[str, Any] | None:
    """How far the original differs from itself, by source, with the raw samples; None when none was asked for."""
    if not sources:
        return None
    described = {}
    for source in sources:
        found = variant_samples(records, f"floor-{source}", samples, scorer)
        if found:
            described[source] = {"label": SOURCES[source], **describe_variant(found), "samples": found}
    most = max((entry["pictures"] for entry in described.values()), default=0)
    return {"label": f"{LABEL}, {most} pictures", "sources": described, "not_measured": dict(not_measured)}


def _mean(entries: Sequence[Mapping[str, Any]], values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.mean(values), "interval_95": statistics.mean_interval(by_prompt(entries, values))}
