"""Summaries of the further metrics of pairs and of distances between sets, and why others are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sdcompress.evaluation.metrics.fid import ENOUGH as FID_ENOUGH
from sdcompress.evaluation.metrics.registry import pair_metrics
from sdcompress.evaluation.samples import Record, ScoringRecord, SetScoreRecord
from sdcompress.report import statistics
from sdcompress.report.pairing import estimate, shown_pairs
from sdcompress.report.quality_model import Metric, Sample, SetFloor, SetMetric


class MetricKind(NamedTuple):
    """A metric: its name in words, its unit, whether more of it is better, and how many digits are shown."""

    words: str
    unit: str
    higher_is_better: bool
    digits: int


# Metrics that every report has; the others are files in evaluation/metrics.
ALWAYS = {
    "clip_score": MetricKind("CLIP drift", "", True, 2),
    "psnr_db": MetricKind("PSNR", "dB", True, 1),
    "ssim": MetricKind("SSIM", "1", True, 3),
}
FURTHER = {
    name: MetricKind(metric.words, metric.unit, metric.higher_is_better, metric.digits)
    for name, metric in pair_metrics().items()
}
PAIR_METRICS = ALWAYS | FURTHER
SET_METRICS = {"cmmd": MetricKind("CMMD", "1", False, 3), "fid": MetricKind("FID", "1", False, 2)}
ENOUGH = {"fid": FID_ENOUGH}  # pictures that make a distance of sets reliable: FID needs more than it has features


def describe_metrics(samples: Sequence[Sample], confidence: float) -> dict[str, Metric]:
    """Return each metric that was measured, over the pairs of which nothing is blocked."""
    described = {}
    for name, kind in FURTHER.items():
        having = [(each, value) for each in shown_pairs(samples) if (value := each.metrics.get(name)) is not None]
        if not having:
            continue
        pairs, values = [each for each, _ in having], [value for _, value in having]
        known = estimate(pairs, values, confidence)
        worst = values.index(min(values) if kind.higher_is_better else max(values))
        described[name] = Metric(
            unit=kind.unit,
            higher_is_better=kind.higher_is_better,
            mean=known.mean,
            median=statistics.median(values),
            interval_95=known.interval_95,
            worst_index=pairs[worst].index,
        )
    return described


def describe_sets(records: Sequence[Record], scorer: str | None, count: int) -> dict[str, SetMetric]:
    """Return CMMD and FID over all pictures; beside each that of another seed, both over the pictures drawn twice."""
    found = {(r.label, r.over): r for r in records if isinstance(r, SetScoreRecord) and r.scorer == scorer}
    everything = found.get(("compressed", "all"))
    if everything is None or everything.count != count:
        return {}
    few, reseeded = found.get(("compressed", "floor")), found.get(("floor-seed", "floor"))
    described = {}
    for name, kind in SET_METRICS.items():
        value, enough = getattr(everything, name), ENOUGH.get(name)
        if value is None:
            continue
        more: dict[str, Any] = {}
        if enough is not None:
            more |= {"enough_pictures": enough, "reliable": count >= enough}
        if few is not None and reseeded is not None and few.count == reseeded.count:
            more["floor"] = SetFloor(pictures=few.count, compressed=getattr(few, name), seed=getattr(reseeded, name))
        described[name] = SetMetric(
            unit=kind.unit, higher_is_better=kind.higher_is_better, value=value, pictures=count, **more
        )
    return described


def why_not_measured(records: Sequence[Record], samples: Sequence[Sample], scorer: str | None) -> dict[str, str]:
    """Return, for each metric that the report lacks, why it was not measured."""
    reasons: dict[str, str] = {}
    for record in records:
        if isinstance(record, ScoringRecord) and record.scorer == scorer:
            reasons.update(record.not_measured)
    if not any(joules is not None for sample in samples for joules in sample.original.energy_j):
        reasons["energy"] = "no counter of RAPL (Linux; often for root alone) or NVML that this process may read"
    if scorer is None:
        reasons["clip_image"] = reasons["cmmd"] = "no scorer was used"
    shown = shown_pairs(samples)
    measured = {name for each in shown for name, value in each.metrics.items() if value is not None}
    if shown and "ms_ssim" not in measured:
        smallest = min(min(each.original.height, each.original.width) for each in shown)
        reasons["ms_ssim"] = f"its five scales need pictures of 176 pixels, these have {smallest}"
    if shown and "lpips" not in reasons and "lpips" not in measured:
        reasons["lpips"] = "AlexNet needs pictures of 31 pixels"
    return {name: reason for name, reason in reasons.items() if name not in measured}
