"""Raw samples to report: everything derived is derived here, and can be derived again from the report itself.

JSON has no infinity: the PSNR of identical pictures is stored as `null` beside `"identical": true`, and a `null`
median or minimum of PSNR means that it is infinite. `null` elsewhere means not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdcompress.report import statistics
from sdcompress.report.attribution import describe_attribution
from sdcompress.report.pairing import SIDES, by_prompt, scored_pairs, shown_pairs
from sdcompress.report.sample_metrics import describe_metrics, describe_sets, why_not_measured
from sdcompress.report.variants import describe_noise_floor
from sdcompress.report.verdicts import judge

SCHEMA_VERSION = 1
FLAGS = ("blocked", "flat", "not_finite")
COMPARED = (
    "parameters",
    "size_bytes",
    "weights_bytes",
    "bits_per_weight",
    "resident_weights_bytes",
    "peak_memory_bytes",
    "peak_memory_over_imports_bytes",
    "peak_device_memory_bytes",
    "load_s",
    "latency_s",
    "images_per_minute",
    "energy_j",
    "macs",
    "clip_score",
)
COMPARED_COMPONENT = ("parameters", "weights_bytes", "bits_per_weight", "resident_weights_bytes", "latency_s")


def build_report(
    *,
    environment: Mapping[str, Any],
    settings: Mapping[str, Any],
    scorer: Mapping[str, Any] | None,
    models: Mapping[str, Mapping[str, Any]],
    drawings: Sequence[Mapping[str, Any]],
    records: Iterable[Mapping[str, Any]],
    command: str | None = None,
    floor_not_measured: Mapping[str, str] | None = None,
    swaps: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The whole report as JSON-safe values, from facts about both models and the log of raw samples.

    floor_not_measured: source of noise -> why not. swaps: the components that attribution swapped, None without it.
    """
    records = list(records)
    scorer_name = None if scorer is None else scorer["name"]
    samples = collect_samples(drawings, records, scorer)
    processes = {side: [_raw(r) for r in records if r["kind"] == "process" and r["side"] == side] for side in SIDES}
    probed = None
    if settings.get("component_metrics"):
        wanted = min(settings["component_metrics_count"], len(drawings))  # a rerun may have asked for other counts
        probed = next((r for r in records if r["kind"] == "components" and r["pictures"] == wanted), None)
    sides = {
        side: describe_side(models[side], samples, processes[side], side, (probed or {}).get("macs", {}).get(side))
        for side in SIDES
    }
    sources = settings.get("noise_floor", ())
    noise_floor = describe_noise_floor(records, samples, scorer_name, sources, floor_not_measured or {})
    ran = {
        name: {side: processes[side][-1].get(name) for side in SIDES}
        for name in ("device", "device_name", "dtype", "threads")
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "environment": {**environment, **ran},
        "settings": {**settings, **_resolved(settings, processes)},
        "scorer": None if scorer is None else dict(scorer),
        **sides,
        "change": compare_sides(sides["original"], sides["compressed"], samples),
        "similarity": describe_similarity(samples),
        "metrics": describe_metrics(samples),
        "set_metrics": describe_sets(records, scorer_name, len(samples)),
        "not_measured": why_not_measured(records, samples, scorer_name),
        "component_metrics": None if probed is None else probed["component_metrics"],
        "noise_floor": noise_floor,
        "verdicts": judge(samples, noise_floor),
        "attribution": None
        if swaps is None
        else describe_attribution(records, samples, scorer_name, swaps, noise_floor),
        "gates": [],
        "samples": samples,
        "processes": processes,
    }


def collect_samples(
    drawings: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], scorer: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """One entry per drawing: prompt, seed, and what each side measured, every repeat of its latency included."""
    scorer_name = None if scorer is None else scorer["name"]
    pictures: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for record in records:
        if record["kind"] == "picture":
            pictures.setdefault((record["index"], record["side"]), []).append(record)
    scores = {r["index"]: r for r in records if r["kind"] == "score" and r["scorer"] == scorer_name}
    samples = []
    for drawing in drawings:
        index = drawing["index"]
        score = scores[index]
        sample: dict[str, Any] = dict(drawing)
        for side in SIDES:
            taken = pictures[index, side]
            first = taken[0]
            sample[side] = {
                "latency_s": [record["latency_s"] for record in taken],
                "component_latency_s": [record["component_latency_s"] for record in taken],
                "peak_memory_bytes": _largest(record["peak_memory_bytes"] for record in taken),
                "peak_device_memory_bytes": _largest(record["peak_device_memory_bytes"] for record in taken),
                "energy_j": [record.get("energy_j") for record in taken],
                "clip_score": score["clip_score"][side],
                **{flag: first[flag] for flag in FLAGS},
                "vae_upcast": first.get("vae_upcast"),
                "height": first["height"],
                "width": first["width"],
                "latents_sha256": first["latents_sha256"],
                "picture": f"images/{side}/{index:04d}.png",
            }
        similarity = {name: score[name] for name in ("psnr_db", "identical", "ssim")}
        samples.append({**sample, **similarity, "metrics": dict(score.get("metrics", {}))})
    return samples


def describe_side(
    model: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    processes: Sequence[Mapping[str, Any]],
    side: str,
    macs: Mapping[str, int | None] | None = None,
) -> dict[str, Any]:
    """One pipeline's costs and score: what its files say, and the medians and means of its samples.

    macs: component -> multiply-accumulates per picture (None: not counted).
    """
    counted = macs or {}
    taken = [sample[side] for sample in samples]
    latencies = [_median_of(entry["latency_s"]) for entry in taken]
    peak = _largest([*(e["peak_memory_bytes"] for e in taken), *(p["peak_memory_bytes"] for p in processes)])
    imports = _largest(process["resident_after_imports_bytes"] for process in processes)
    resident = processes[-1]["resident_weights_bytes"]
    clip = [sample[side]["clip_score"] for sample in scored_pairs(samples)]
    components: dict[str, dict[str, Any]] = {}
    for name, facts in model["components"].items():
        component = {**facts, "resident_weights_bytes": resident.get(name), "macs": counted.get(name)}
        spent = [_median_of([each.get(name, 0.0) for each in e["component_latency_s"]]) for e in taken]
        called = any(name in each for e in taken for each in e["component_latency_s"])
        components[name] = {**component, "latency_s": statistics.median(spent) if called else None}
    return {
        "name": model["name"],
        "pipeline_class": model["pipeline_class"],
        "parameters": model["parameters"],
        "size_bytes": model["size_bytes"],
        "weights_bytes": model["weights_bytes"],
        "bits_per_weight": 8 * model["weights_bytes"] / model["parameters"] if model["parameters"] else None,
        "resident_weights_bytes": sum(resident.values()) if resident else None,
        "peak_memory_bytes": peak,
        "peak_memory_over_imports_bytes": None if peak is None or imports is None else peak - imports,
        "peak_device_memory_bytes": _largest(entry["peak_device_memory_bytes"] for entry in taken),
        "load_s": statistics.median([process["load_s"] for process in processes]),
        "latency_s": statistics.median(latencies),
        "latency_s_quantiles": statistics.quantiles(latencies),
        "images_per_minute": 60 / float(statistics.mean(latencies) or math.nan),
        "energy_j": statistics.median([value for entry in taken for value in entry["energy_j"] if value is not None]),
        "macs": None if not counted or None in counted.values() else sum(value or 0 for value in counted.values()),
        "clip_score": statistics.mean(clip),
        "pictures": len(taken),
        **{flag: sum(entry[flag] for entry in taken) for flag in FLAGS},
        "components": components,
        "layers": list(model["layers"]),
    }


def compare_sides(
    original: Mapping[str, Any], compressed: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Difference and ratio of every figure; paired bootstrap intervals where there are samples to resample."""
    change: dict[str, Any] = {name: _change(original[name], compressed[name]) for name in COMPARED}
    latencies = {side: [_median_of(sample[side]["latency_s"]) for sample in samples] for side in SIDES}
    change["latency_s"]["ratio_interval_95"] = statistics.median_ratio_interval(
        latencies["original"], latencies["compressed"]
    )
    pairs = scored_pairs(samples)
    change["clip_score"]["interval_95"] = statistics.mean_interval(
        by_prompt(pairs, [sample["compressed"]["clip_score"] - sample["original"]["clip_score"] for sample in pairs])
    )
    change["clip_score"]["pairs"] = len(pairs)
    nothing: dict[str, Any] = {}
    names = sorted({*original["components"], *compressed["components"]})
    change["components"] = {
        component: {
            name: _change(
                original["components"].get(component, nothing).get(name),
                compressed["components"].get(component, nothing).get(name),
            )
            for name in COMPARED_COMPONENT
        }
        for component in names
    }
    return change


def describe_similarity(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Same-seed PSNR and SSIM over the pairs that show two pictures, and whether both sides began alike.

    The mean of PSNR is over the pairs that differ, since one identical pair would make it infinite.
    """
    shown = shown_pairs(samples)
    pairs = [sample for sample in shown if sample["ssim"] is not None]
    psnr = [math.inf if sample["identical"] else sample["psnr_db"] for sample in pairs]
    differing = [sample for sample in pairs if not sample["identical"]]
    finite = [sample["psnr_db"] for sample in differing]
    ssim = [sample["ssim"] for sample in pairs]
    hashes = [[sample[side]["latents_sha256"] for side in SIDES] for sample in samples]
    known = all(first and second for first, second in hashes)
    return {
        "pairs": len(pairs),
        "pairs_blocked": len(samples) - len(shown),
        "pairs_of_unlike_size": len(shown) - len(pairs),
        "identical": len(pairs) - len(differing),
        "identical_latents": all(first == second for first, second in hashes) if known else None,
        "psnr_db": {
            "mean": statistics.mean(finite),
            "median": _finite(statistics.median(psnr)),
            "min": _finite(min(psnr, default=None)),
            "interval_95": statistics.mean_interval(by_prompt(differing, finite)),
        },
        "ssim": {
            "mean": statistics.mean(ssim),
            "median": statistics.median(ssim),
            "min": min(ssim, default=None),
            "interval_95": statistics.mean_interval(by_prompt(pairs, ssim)),
        },
    }


def _change(original: float | None, compressed: float | None) -> dict[str, Any]:
    if original is None or compressed is None:
        return {"difference": None, "ratio": None}
    return {"difference": compressed - original, "ratio": compressed / original if original else None}


def _resolved(settings: Mapping[str, Any], processes: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The sampler settings that were left to the pipeline, as the original's pipeline has them."""
    defaults = processes["original"][-1]["defaults"]
    return {name: value for name, value in defaults.items() if settings.get(name) is None}


def _raw(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("kind", "side")}


def _median_of(values: Sequence[float]) -> float:
    found = statistics.median(values)
    return math.nan if found is None else found


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value
