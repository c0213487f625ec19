"""Which charts a report shows: quality over size, bytes by component, latencies, drift, and loss while recovering."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sdcompress.report.charts import Axis, Mark, bars, curves, scatter, strips
from sdcompress.report.page_tables import SIDES, drift_of
from sdcompress.report.wording import bytes_text, seconds_text, signed_text

Chart = tuple[str, str]  # its caption and its SVG

SIZE = Axis("weights on disk", bytes_text)


def quality_charts(report: Mapping[str, Any]) -> list[Chart]:
    """CLIP score and same-seed PSNR over bytes: both sides, each rung of the attribution, and the noise floor."""
    found = (_clip_over_size(report), _psnr_over_size(report))
    return [chart for chart in found if chart is not None]


def component_chart(report: Mapping[str, Any]) -> Chart:
    """Bytes of every component, original above compressed."""
    return _component_bars(report, "weights_bytes", "Bytes of weights by component", bytes_text)


def latency_charts(report: Mapping[str, Any]) -> list[Chart]:
    """Every measured time per picture, both sides, and the median time of each component."""
    groups = [(side, side, [value for s in report["samples"] for value in s[side]["latency_s"]]) for side in SIDES]
    caption = "Every picture's time; box: middle half, line: median, whiskers: 5 to 95 %"
    strip = caption, strips(groups, seconds_text, title="Time per picture of both pipelines")
    return [strip, _component_bars(report, "latency_s", "Time per picture by component", seconds_text)]


def drift_chart(report: Mapping[str, Any]) -> Chart | None:
    """The CLIP drift of every pair; None where nothing was scored."""
    drifts = [drift for sample in report["samples"] if (drift := drift_of(sample)) is not None]
    if not drifts:
        return None
    svg = strips([("CLIP drift", "compressed", drifts)], signed_text, title="CLIP drift of every pair")
    return "CLIP drift of every pair; left of 0 the compressed pipeline scores lower", svg


def loss_chart(report: Mapping[str, Any]) -> Chart | None:
    """The loss while weights were recovered, a line for each component; None where nothing was recovered."""
    found = {component: entry["loss"] for component, entry in (report.get("recovery") or {}).items()}
    lines = [(component, loss["means"]) for component, loss in found.items() if len(loss["means"]) > 1]
    if not lines:
        return None
    each = max(loss["steps_each"] for loss in found.values())
    steps = Axis("step" if each == 1 else f"{each} steps", lambda value: f"{value:.0f}")
    axes = steps, Axis("loss", lambda value: f"{value:.3g}")
    return "Loss while recovering", curves(lines, *axes, title="Loss while recovering")


def _component_bars(report: Mapping[str, Any], figure: str, words: str, text: Callable[[float], str]) -> Chart:
    original, compressed = (report[side]["components"] for side in SIDES)
    rows = [
        (name, *((side.get(name) or {}).get(figure) for side in (original, compressed)))
        for name in dict.fromkeys((*original, *compressed))
    ]
    return f"{words}, original above compressed", bars(rows, text, title=words)


def _clip_over_size(report: Mapping[str, Any]) -> Chart | None:
    before, after = report["original"]["clip_score"], report["compressed"]["clip_score"]
    if before is None or after is None:
        return None
    interval = report["change"]["clip_score"]["interval_95"]
    bounds = (before + interval[0], before + interval[1]) if interval else None
    size = report["original"]["weights_bytes"]
    marks = [
        Mark(size, before, "original", "original", detail=f"{bytes_text(size)}, CLIP {before:.2f}"),
        Mark(
            report["compressed"]["weights_bytes"],
            after,
            "compressed",
            "compressed",
            bounds,
            f"{bytes_text(report['compressed']['weights_bytes'])}, CLIP {after:.2f}",
        ),
    ]
    for entry in report.get("attribution") or ():
        drift = (entry.get("clip_score") or {}).get("difference")
        if drift is not None and entry.get("saved_bytes") is not None:
            marks.append(Mark(size - entry["saved_bytes"], before + drift, f"only {entry['name']}", "part"))
    caption = "CLIP score over size; the bar is the 95 % interval of the paired drift"
    return caption, scatter(marks, SIZE, Axis("CLIP score", lambda value: f"{value:.4g}"), title="CLIP score over size")


def _psnr_over_size(report: Mapping[str, Any]) -> Chart | None:
    similarity = report["similarity"]
    if not similarity["pairs"]:
        return None
    psnr = similarity["psnr_db"]
    mean = math.inf if psnr["mean"] is None else psnr["mean"]
    interval = tuple(psnr["interval_95"]) if psnr["interval_95"] else None
    size = report["original"]["weights_bytes"]
    marks = [
        Mark(size, math.inf, "original (identical)", "original", detail=bytes_text(size)),
        Mark(
            report["compressed"]["weights_bytes"],
            mean,
            "compressed",
            "compressed",
            interval,  # type: ignore[arg-type]
            f"{bytes_text(report['compressed']['weights_bytes'])}, {mean:.1f} dB",
        ),
    ]
    for entry in report.get("attribution") or ():
        value = (entry.get("psnr_db") or {}).get("mean")
        if value is not None and entry.get("saved_bytes") is not None:
            marks.append(Mark(size - entry["saved_bytes"], value, f"only {entry['name']}", "part"))
    lines = [
        (figure["mean"], f"noise: {source.get('label', name)}")
        for name, source in ((report.get("noise_floor") or {}).get("sources") or {}).items()
        if (figure := source.get("psnr_db") or {}).get("mean") is not None
    ]
    axis = Axis("PSNR against the original, dB", lambda value: f"{value:.4g}")
    return "Same-seed PSNR over size", scatter(marks, SIZE, axis, title="Same-seed PSNR over size", lines=lines)
