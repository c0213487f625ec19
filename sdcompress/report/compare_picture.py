"""A comparison's quality over bytes and over latency as a PNG, drawn with matplotlib (extra `report`)."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sdcompress.errors import UserError
from sdcompress.report.compare import COSTS, ComparedMetric, Comparison
from sdcompress.report.number_text import bytes_text, seconds_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COST_TEXTS = {"weights_bytes": ("weights on disk", bytes_text), "latency_s": ("time per picture", seconds_text)}
FRONT, BEHIND, GRID = "#2f5fd0", "#8a94a0", "#e6e9ed"


def check_matplotlib() -> None:
    """Raise UserError when the extra that draws pictures is not installed."""
    if find_spec("matplotlib") is None:
        raise UserError("--out: compare.png needs matplotlib; install it with `pip install 'sdcompress[report]'`")


def draw_png(comparison: Comparison, file: Path) -> None:
    """Draw both charts side by side: the front joined by a line, dominated points hollow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    for place, cost in enumerate(COSTS):
        axes = figure.add_subplot(1, 2, place + 1)
        _draw_points(axes, comparison, cost)
        _label_axes(axes, comparison.metric, cost)
    figure.savefig(file, dpi=130)


def _draw_points(axes: Axes, comparison: Comparison, cost: str) -> None:
    known = [
        (price, quality, row)
        for row in comparison.rows
        if (price := row.cost(cost)) is not None and (quality := row.rank) is not None
    ]
    finite = [quality for _, quality, _ in known if math.isfinite(quality)]
    spread = max(finite, default=1.0) - min(finite, default=0.0)
    edge = max(finite, default=0.0) + 0.08 * (spread or 1.0)  # where the infinite is drawn
    points = sorted(((price, min(quality, edge), row) for price, quality, row in known), key=lambda point: point[:2])
    front = [point for point in points if point[2].front[cost]]
    behind = [point for point in points if not point[2].front[cost]]
    axes.plot([x for x, *_ in front], [y for _, y, _ in front], color=FRONT, linewidth=1, alpha=0.6)
    axes.scatter([x for x, *_ in front], [y for _, y, _ in front], color=FRONT, zorder=3)
    axes.scatter([x for x, *_ in behind], [y for _, y, _ in behind], facecolors="none", edgecolors=BEHIND)
    labels: dict[tuple[float, float], list[str]] = {}  # reports may have the same figures
    for x, y, row in front:
        labels.setdefault((x, y), []).append(row.label.replace("$", r"\$") + (" (identical)" if row.identical else ""))
    for place, names in labels.items():
        axes.annotate(", ".join(names), place, (5, 5), textcoords="offset points", fontsize=8)


def _label_axes(axes: Axes, metric: ComparedMetric, cost: str) -> None:
    from matplotlib.ticker import FuncFormatter

    label, text = COST_TEXTS[cost]
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value) if value else "0"))
    axes.set_xlabel(label)
    axes.set_ylabel(f"{metric.words}, {metric.unit}" if metric.unit else metric.words)
    axes.margins(x=0.15)  # room for the labels
    axes.set_xlim(left=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
