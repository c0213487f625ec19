"""Many reports as one comparison: a row each, which are dominated, and what makes them hard to compare."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field

from sdcompress.errors import UserError
from sdcompress.report.model import ReportData
from sdcompress.report.quality_model import Estimate, Interval, Part

SCHEMA_VERSION = 1
COSTS = ("weights_bytes", "latency_s")
# Metric -> its name in words, its unit, and whether more is better. Others are looked up in each report's `metrics`.
METRICS = {
    "psnr_db": ("same-seed PSNR", "dB", True),
    "clip_score": ("CLIP score drift", "", True),
    "ssim": ("same-seed SSIM", "", True),
}


class ReportFigures(Part):
    """The figures of a report that a line in a comparison or a history shows."""

    weights_bytes: int
    size_bytes: int | None
    latency_s: float | None
    peak_memory_bytes: int | None
    clip_score_drift: float | None
    clip_score_drift_interval_95: Interval | None
    psnr_db: float | None
    identical: bool
    pictures: int


def figures_of(report: ReportData) -> dict[str, Any]:
    """Return the fields of `ReportFigures`."""
    compressed, drift, similarity = report.compressed, report.change.clip_score, report.similarity
    own = ("weights_bytes", "size_bytes", "latency_s", "peak_memory_bytes", "pictures")
    return {
        **{name: getattr(compressed, name) for name in own},
        "clip_score_drift": drift.difference,
        "clip_score_drift_interval_95": drift.interval_95,
        "psnr_db": similarity.psnr_db.mean,
        "identical": similarity.all_identical,
    }


class ComparedMetric(Part):
    """The metric that quality is compared by."""

    name: str
    words: str
    unit: str
    higher_is_better: bool


class ComparedReport(ReportFigures):
    """One report's figures.

    Attributes:
        front: cost (`weights_bytes`, `latency_s`) -> True when no other report has less of it and at least the same
            quality, False when one has, None where something was not measured.
        dominated_by: cost -> the label of a report that has; None where none has.
    """

    label: str
    original: str
    compressed: str
    metric: str
    quality: float | None
    quality_interval_95: Interval | None
    parameters: int
    size_ratio: float | None
    original_weights_bytes: int
    bits_per_weight: float | None
    latency_ratio: float | None
    ssim: float | None
    verdict: str | None
    front: dict[str, bool | None] = Field({})
    dominated_by: dict[str, str | None] = Field({})

    @property
    def rank(self) -> float | None:
        """Quality by the chosen metric; infinite where all pictures are identical and the metric is PSNR."""
        return math.inf if self.quality is None and self.identical and self.metric == "psnr_db" else self.quality

    def cost(self, name: str) -> float | None:
        """Return bytes of weights or seconds per picture; None where it is zero or was not measured."""
        return (self.weights_bytes if name == "weights_bytes" else self.latency_s) or None


class Group(Part):
    """The reports that have the same value of an aspect."""

    value: str
    reports: list[str]


class Disagreement(Part):
    """An aspect that differs between reports, the largest group first."""

    aspect: str
    groups: list[Group]

    def __str__(self) -> str:
        first, *others = self.groups
        rest = "; ".join(f"{group.value} in {', '.join(group.reports)}" for group in others)
        return f"{self.aspect} differ: {first.value} in {_most(first.reports)}, but {rest}"


class Comparison(Part):
    """Reports compared: their rows in the order given, and what differs that a comparison takes for equal."""

    schema_version: int = SCHEMA_VERSION
    metric: ComparedMetric
    rows: list[ComparedReport]
    warnings: list[Disagreement]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-safe values: what compare.json holds."""
        return self.model_dump(mode="json")


def compare_reports(reports: Mapping[str, ReportData], metric: str = "psnr_db") -> Comparison:
    """Return the comparison of the reports by label.

    metric: psnr_db, clip_score, ssim or what else a report measured.

    Raises:
        UserError: no report has the metric.
    """
    described = describe_metric(reports, metric)
    rows = mark_fronts([_row(label, report, metric) for label, report in reports.items()], described.higher_is_better)
    return Comparison(metric=described, rows=rows, warnings=find_differences(reports))


def describe_metric(reports: Mapping[str, ReportData], metric: str) -> ComparedMetric:
    """Return what the metric is. UserError names the metrics that there are."""
    if metric in METRICS:
        words, unit, higher = METRICS[metric]
        return ComparedMetric(name=metric, words=words, unit=unit, higher_is_better=higher)
    named = {name: found for report in reports.values() for name, found in report.metrics.items()}
    if metric not in named:
        known = ", ".join([*METRICS, *sorted(set(named) - set(METRICS))])
        raise UserError(f"--metric {metric}: no report has it; use one of {known}")
    words, unit, higher = metric.replace("_", " "), named[metric].unit or "", named[metric].higher_is_better
    return ComparedMetric(name=metric, words=words, unit=unit, higher_is_better=higher)


def mark_fronts(rows: Sequence[ComparedReport], higher_is_better: bool) -> list[ComparedReport]:
    """Return the rows with `front` and `dominated_by` of each cost: less cost and better quality dominate."""
    sign = 1 if higher_is_better else -1
    marks: dict[str, dict[str, dict[str, Any]]] = {row.label: {"front": {}, "dominated_by": {}} for row in rows}
    for cost in COSTS:
        known = [
            (row.label, row.cost(cost) or 0.0, sign * row.rank)
            for row in rows
            if row.cost(cost) and row.rank is not None
        ]
        for mark in marks.values():
            mark["front"][cost] = mark["dominated_by"][cost] = None
        for label, price, quality in known:
            better = (
                other
                for other, its_price, its_quality in known
                if its_price <= price and its_quality >= quality and (its_price < price or its_quality > quality)
            )
            marks[label]["dominated_by"][cost] = by = next(better, None)
            marks[label]["front"][cost] = by is None
    return [row.model_copy(update=marks[row.label]) for row in rows]


def _row(label: str, report: ReportData, metric: str) -> ComparedReport:
    compressed, drift, similarity = report.compressed, report.change.clip_score, report.similarity
    if metric == "clip_score":
        quality = Estimate(mean=drift.difference, interval_95=drift.interval_95)
    elif metric in METRICS:
        quality = getattr(similarity, metric)
    else:
        quality = report.metrics.get(metric, Estimate())
    return ComparedReport(
        label=label,
        original=report.original.name,
        compressed=compressed.name,
        metric=metric,
        quality=quality.mean,
        quality_interval_95=quality.interval_95,
        parameters=compressed.parameters,
        size_ratio=report.change.weights_bytes.ratio,
        original_weights_bytes=report.original.weights_bytes,
        bits_per_weight=compressed.bits_per_weight,
        latency_ratio=report.change.latency_s.ratio,
        ssim=similarity.ssim.mean,
        verdict=report.verdicts[metric].verdict if metric in report.verdicts else None,
        **figures_of(report),
    )


def find_differences(reports: Mapping[str, ReportData]) -> list[Disagreement]:
    """Return what differs between reports that a comparison takes for equal."""
    found = []
    for aspect, value_of in ASPECTS.items():
        groups: dict[str, list[str]] = {}
        for label, report in reports.items():
            groups.setdefault(value_of(report), []).append(label)
        if len(groups) > 1:
            ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
            listed = [Group(value=value, reports=labels) for value, labels in ordered]
            found.append(Disagreement(aspect=aspect, groups=listed))
    return found


def _most(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) <= 3 else f"{len(labels)} reports ({labels[0]}, {labels[1]}, …)"


def _prompts(report: ReportData) -> str:
    prompts = list(dict.fromkeys(sample.prompt for sample in report.samples))
    digest = hashlib.sha256("\n".join(prompts).encode("utf-8")).hexdigest()[:6]
    return f"{len(prompts)} prompts of {report.settings.prompt_set} (#{digest})"


def _seeds(report: ReportData) -> str:
    seeds = sorted(sample.seed for sample in report.samples)
    if not seeds:
        return "none"
    whole = seeds == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if whole else f"{len(seeds)} from {seeds[0]} to {seeds[-1]}"


def _sampler(report: ReportData) -> str:
    settings = report.settings
    size = f"{settings.width or 'own'} x {settings.height or 'own'} pixels"
    return f"{settings.num_inference_steps} steps, guidance {settings.guidance_scale}, {size}"


def _machine(report: ReportData) -> str:
    environment = report.environment
    device = environment.device_name["compressed"] or environment.device["compressed"]
    return f"{environment.cpu}, {environment.cores} cores, {device}, {environment.threads['compressed']} threads"


ASPECTS: dict[str, Callable[[ReportData], str]] = {
    "originals": lambda report: f"{report.original.name} ({report.original.parameters:,} parameters)",
    "prompts": _prompts,
    "seeds": _seeds,
    "sampler settings": _sampler,
    "scorers": lambda report: report.scorer.name if report.scorer else "none",
    "machines": _machine,
}
