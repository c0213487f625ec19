"""The charts of a report: quality over size, bytes by component, latencies, drift, and loss while recovering."""

from __future__ import annotations

import math
from collections.abc import Callable

from sdcompress.evaluation.samples import SIDES
from sdcompress.report.charts import Axis, Mark, bars, curves, scatter, strips
from sdcompress.report.model import ReportData
from sdcompress.report.number_text import bytes_text, number_text, seconds_text, signed_text

Chart = tuple[str, str]  # its caption and its SVG

SIZE = Axis("weights on disk", bytes_text)


def quality_charts(report: ReportData) -> list[Chart]:
    """Return quality over bytes, bytes by component, drifts, and losses while recovering; only what was measured."""
    by_component = _component_bars(report, "weights_bytes", "Bytes of weights by component", bytes_text)
    found = (_clip_over_size(report), _psnr_over_size(report), by_component, _drifts(report), _loss(report))
    return [chart for chart in found if chart is not None]


def latency_charts(report: ReportData) -> list[Chart]:
    """Return every measured time per picture of both sides, and the median time of each component."""
    groups = [(side, side, [value for s in report.samples for value in s.side(side).latency_s]) for side in SIDES]
    caption = "Time of every picture; box: middle half, line: median, whiskers: 5 to 95 %"
    strip = caption, strips(groups, seconds_text, title="Time per picture of both pipelines")
    return [strip, _component_bars(report, "latency_s", "Time per picture by component", seconds_text)]


def _drifts(report: ReportData) -> Chart | None:
    drifts = [sample.drift for sample in report.samples if sample.drift is not None]
    if not drifts:
        return None
    svg = strips([("CLIP drift", "compressed", drifts)], signed_text, title="CLIP drift of every pair")
    return "CLIP drift of every pair; left of 0 the compressed pipeline scores lower", svg


def _loss(report: ReportData) -> Chart | None:
    found = {component: entry["loss"] for component, entry in (report.recovery or {}).items()}
    lines = [(component, loss["means"]) for component, loss in found.items() if len(loss["means"]) > 1]
    if not lines:
        return None
    each = max(loss["steps_each"] for loss in found.values())
    steps = Axis("step" if each == 1 else f"{each} steps", lambda value: f"{value:.0f}")
    axes = steps, Axis("loss", lambda value: f"{value:.3g}")
    return "Loss while recovering", curves(lines, *axes, title="Loss while recovering")


def _component_bars(report: ReportData, figure: str, words: str, text: Callable[[float], str]) -> Chart:
    sides = report.original.components, report.compressed.components
    before, after = ({name: getattr(part, figure) for name, part in side.items()} for side in sides)
    rows = [(name, before.get(name), after.get(name)) for name in dict.fromkeys((*before, *after))]
    return f"{words}, original above compressed", bars(rows, text, title=words)


def _clip_over_size(report: ReportData) -> Chart | None:
    original, compressed = report.original, report.compressed
    if original.clip_score is None or compressed.clip_score is None:
        return None
    base, interval = original.clip_score, report.change.clip_score.interval_95
    bounds = (base + interval[0], base + interval[1]) if interval else None
    swaps = [
        (entry.name, entry.saved_bytes, base + entry.clip_score.difference)
        for entry in report.attribution or ()
        if entry.clip_score.difference is not None
    ]
    marks = _marks(report, (base, compressed.clip_score), "CLIP score", bounds, swaps)
    title = "CLIP score over size"
    svg = scatter(marks, SIZE, Axis("CLIP score", lambda value: f"{value:.4g}"), title=title)
    return f"{title}; the bar is the 95 % interval of the paired drift", svg


def _psnr_over_size(report: ReportData) -> Chart | None:
    psnr = report.similarity.psnr_db
    if not report.similarity.pairs:
        return None
    swaps = [
        (entry.name, entry.saved_bytes, entry.psnr_db.mean)
        for entry in report.attribution or ()
        if entry.psnr_db.mean is not None
    ]
    mean = math.inf if psnr.mean is None else psnr.mean
    marks = _marks(report, (math.inf, mean), "PSNR in dB", psnr.interval_95, swaps)
    lines = [
        (source.psnr_db.mean, f"noise: {source.label}")
        for source in (report.noise_floor.sources if report.noise_floor else {}).values()
        if source.psnr_db.mean is not None
    ]
    axis = Axis("PSNR against the original, dB", lambda value: f"{value:.4g}")
    return "Same-seed PSNR over size", scatter(marks, SIZE, axis, title="Same-seed PSNR over size", lines=lines)


def _marks(
    report: ReportData,
    quality: tuple[float, float],
    words: str,
    interval: tuple[float, float] | None,
    swaps: list[tuple[str, int | None, float]],
) -> list[Mark]:
    """Points of both sides, and of the original with each component swapped: its name, bytes saved and quality."""
    sizes = report.original.weights_bytes, report.compressed.weights_bytes
    told = ["" if math.isinf(value) else f", {words} {number_text(value)}" for value in quality]
    details = [bytes_text(size) + text for size, text in zip(sizes, told, strict=True)]
    first = "original (identical)" if math.isinf(quality[0]) else "original"
    return [
        Mark(sizes[0], quality[0], first, "original", detail=details[0]),
        Mark(sizes[1], quality[1], "compressed", "compressed", interval, details[1]),
        *(Mark(sizes[0] - saved, y, f"only {name}", "part") for name, saved, y in swaps if saved is not None),
    ]
