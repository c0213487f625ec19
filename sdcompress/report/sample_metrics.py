"""Summaries of samples' further metrics and of distances between sets, and why others are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdcompress.evaluation.metrics.fid import ENOUGH as FID_ENOUGH
from sdcompress.report import statistics
from sdcompress.report.pairing import by_prompt, shown_pairs

# Name -> (unit, whether higher is better), and how a report calls it.
METRICS: dict[str, tuple[tuple[str, bool], str]] = {
    "clip_image": (("0..100", True), "CLIP image"),
    "ms_ssim": (("1", True), "MS-SSIM"),
    "lpips": (("1", False), "LPIPS"),
}

# Distances of sets -> how many pictures they need to be reliable (FID: more than it has features), None for any number.
SETS: dict[str, int | None] = {"cmmd": None, "fid": FID_ENOUGH}


def describe_metrics(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Name -> unit, direction, mean, median, 95 % interval and the worst sample's index, for what was measured."""
    described = {}
    shown = shown_pairs(samples)
    for name, ((unit, higher_is_better), _) in METRICS.items():
        having = [sample for sample in shown if sample["metrics"].get(name) is not None]
        if not having:
            continue
        values = [sample["metrics"][name] for sample in having]
        worst = (min if higher_is_better else max)(having, key=lambda sample: sample["metrics"][name])
        described[name] = {
            "unit": unit,
            "higher_is_better": higher_is_better,
            "mean": statistics.mean(values),
            "median": statistics.median(values),
            "interval_95": statistics.mean_interval(by_prompt(having, values)),
            "worst_index": worst["index"],
        }
    return described


def describe_sets(records: Sequence[Mapping[str, Any]], scorer: str | None, count: int) -> dict[str, Any]:
    """CMMD and FID from the original's pictures; beside each that of another seed, both over the pictures it drew."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {
        (r["label"], r["over"]): r for r in records if r["kind"] == "set_score" and r["scorer"] == scorer
    }
    everything = found.get(("compressed", "all"))
    if everything is None or everything["count"] != count:
        return {}
    few, reseeded = found.get(("compressed", "floor")), found.get(("floor-seed", "floor"))
    described = {}
    for name, enough in SETS.items():
        if everything.get(name) is None:
            continue
        entry: dict[str, Any] = {"unit": "1", "higher_is_better": False, "value": everything[name], "pictures": count}
        if enough is not None:
            entry |= {"enough_pictures": enough, "reliable": count >= enough}
        if few is not None and reseeded is not None and few["count"] == reseeded["count"]:
            entry["floor"] = {"pictures": few["count"], "compressed": few[name], "seed": reseeded[name]}
        described[name] = entry
    return described


def why_not_measured(
    records: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]], scorer: str | None
) -> dict[str, str]:
    """Metric -> why the report has no figure of it."""
    reasons: dict[str, str] = {}
    for record in records:
        if record["kind"] == "judge" and record["scorer"] == scorer:
            reasons.update(record["not_measured"])
    if not any(joules is not None for sample in samples for joules in sample["original"]["energy_j"]):
        reasons["energy"] = "no counter of RAPL (Linux; often for root alone) or NVML that this process may read"
    if scorer is None:
        reasons["clip_image"] = reasons["cmmd"] = "no scorer was used"
    shown = shown_pairs(samples)
    if shown and not any(sample["metrics"].get("ms_ssim") is not None for sample in shown):
        sides = [min(sample["original"]["height"], sample["original"]["width"]) for sample in shown]
        reasons["ms_ssim"] = f"its five scales need pictures of 176 pixels, these have {min(sides)}"
    if shown and "lpips" not in reasons and not _measured("lpips", shown):
        reasons["lpips"] = "AlexNet needs pictures of 31 pixels"
    return {name: reason for name, reason in reasons.items() if not _measured(name, shown)}


def _measured(name: str, samples: Sequence[Mapping[str, Any]]) -> bool:
    return any(sample["metrics"].get(name) is not None for sample in samples)
