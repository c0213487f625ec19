"""The original beside its own variants: redrawn for the noise floor, or with a component swapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdcompress.evaluation.samples import Record, VariantRecord, VariantScoreRecord
from sdcompress.report.pairing import estimate
from sdcompress.report.quality_model import Difference, FloorSource, NoiseFloor, Sample, VariantSample

LABEL = "the original against itself"
SOURCES = {"seed": "another seed", "bfloat16": "in bfloat16", "batch": "in batches of 2"}


def scored_variants(
    records: Sequence[Record], samples: Sequence[Sample], scorer: str | None
) -> dict[str, list[VariantSample]]:
    """Return, by label of the variant, how its pictures differ from the original's, where neither is blocked."""
    originals = {sample.index: sample for sample in samples}
    drawn = {(r.variant, r.index): r for r in records if isinstance(r, VariantRecord)}
    scores = {(r.variant, r.index): r for r in records if isinstance(r, VariantScoreRecord) and r.scorer == scorer}
    found: dict[str, list[VariantSample]] = {}
    for label, index in sorted(drawn.keys() & scores.keys()):
        record, score, sample = drawn[label, index], scores[label, index], originals.get(index)
        if sample is None or record.blocked or sample.original.blocked:
            continue
        before, after = score.clip_score["original"], score.clip_score["compressed"]
        timed = {} if record.original_latency_s is None else {"original_latency_s": record.original_latency_s}
        found.setdefault(label, []).append(
            VariantSample(
                index=index,
                prompt=sample.prompt,
                seed=sample.seed if record.seed is None else record.seed,
                clip_score_difference=None if before is None or after is None else after - before,
                psnr_db=score.psnr_db,
                identical=score.identical,
                ssim=score.ssim,
                metrics=score.metrics,
                latency_s=record.latency_s,
                **timed,
            )
        )
    return found


def variant_figures(found: Sequence[VariantSample], confidence: float) -> dict[str, Any]:
    """Return the fields of a `Variant`: means and intervals over its pictures."""
    clip = estimate(found, [each.drift for each in found], confidence)
    metrics = dict.fromkeys(name for each in found for name, value in each.metrics.items() if value is not None)
    return {
        "pictures": len(found),
        "identical": sum(each.identical for each in found),
        "psnr_db": estimate(found, [each.psnr_db for each in found], confidence),
        "clip_score": Difference(difference=clip.mean, interval_95=clip.interval_95),
        "ssim": estimate(found, [each.ssim for each in found], confidence),
        **{name: estimate(found, [each.metrics.get(name) for each in found], confidence) for name in metrics},
    }


def describe_noise_floor(
    variants: Mapping[str, Sequence[VariantSample]],
    sources: Sequence[str],
    not_measured: Mapping[str, str],
    confidence: float,
) -> NoiseFloor | None:
    """Return how far the original differs from itself, by source, with the raw samples; None when not asked for."""
    if not sources:
        return None
    described = {
        source: FloorSource(label=SOURCES[source], **variant_figures(found, confidence), samples=found)
        for source in sources
        if (found := variants.get(f"floor-{source}"))
    }
    most = max((each.pictures for each in described.values()), default=0)
    return NoiseFloor(label=f"{LABEL}, {most} pictures", sources=described, not_measured=not_measured)
