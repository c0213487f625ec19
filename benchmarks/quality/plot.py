"""Quality over bytes as a picture: PSNR over the bytes of all weights, a panel for each scope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.contender import OURS, PEERS
from benchmarks.quality.points import Point, drawn, frontier, psnr_interval, psnr_of

PANELS = {"UNet alone": ("unet",), "all components": ("all", "rest8")}
# Where a label tells a peer's library: name, colour, marker.
LIBRARIES = {
    "bitsandbytes": ("bitsandbytes", "#4c72b0", "s"),
    "torchao": ("torchao", "#8172b3", "D"),
    "quanto": ("optimum-quanto", "#2a9d8f", "^"),
    "sdnq": ("SDNQ", "#555555", "o"),
}
OWN_COLOUR = "#e07b39"
# Our methods that get a line of their own; every other point of ours is a dot.
METHODS = {
    "nearest, symmetric": ("rounded to nearest", "#f2c29b", ":"),
    "scale search": ("scale search", "#d9a441", "--"),
    "GPTQ": ("GPTQ", "#c0392b", "-."),
    "k-means palettes": ("palettes", "#a8763e", (0, (1, 2))),
}


def draw_quality(result: Mapping[str, Any], to: Path) -> Path:
    """Draws all points that have pictures into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(13, 6.4), sharey=True)
    for axes, (title, scopes) in zip(panels, PANELS.items(), strict=True):
        points = [point for point in result["points"] if point["scope"] in scopes]
        _draw_panel(axes, title, points, result)
    panels[0].set_ylabel("same-seed PSNR to the original, dB")
    handles: dict[str, Any] = {}
    for axes in panels:
        handles.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)})
    figure.suptitle(
        f"{result['model']}: quality over bytes, {len(result['drawings'])} prompts, 95 % intervals "
        f"(numbers: nominal bits; dots: settings off their library's best)",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    figure.legend(
        handles.values(), handles.keys(), loc="lower left", ncols=min(6, len(handles)), frameon=False, fontsize=9
    )
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=110)
    pyplot.close(figure)
    return to


def _draw_panel(axes: Any, title: str, points: Sequence[Point], result: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for library, (name, colour, marker) in LIBRARIES.items():
        mine = [point for point in drawn(points, PEERS) if library_of(point) == library]
        _line(axes, frontier(mine), name, colour, "-", marker, mine)
    own = drawn(points, OURS)
    for family, (name, colour, style) in METHODS.items():
        line = sorted((point for point in own if point["family"] == family), key=lambda point: point["total_bytes"])
        if line:
            axes.plot(_megabytes(line), [psnr_of(point) for point in line], linestyle=style, color=colour, label=name)
    _line(axes, frontier(own), "sdcompress, best", OWN_COLOUR, "-", "o", own, width=2.4)
    floor = next((point for point in result["points"] if point["name"] == "original-other-seed"), None)
    if floor is not None:
        axes.axhline(psnr_of(floor), color="#999999", linewidth=1, linestyle=(0, (4, 4)), label="another seed")
    axes.set_xscale("log")
    shown = [point["total_bytes"] / 1e6 for point in points if point["failed"] is None] or [1.0]
    ticks = [tick for tick in (4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40) if 0.9 * min(shown) <= tick <= 1.1 * max(shown)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("text encoder, UNet and VAE, MB")
    axes.set_title(f"quantized: {title}", fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def library_of(point: Point) -> str:
    """The library of a peer's point, by the beginning of its name."""
    prefix = str(point["name"]).partition("-")[0]
    return "bitsandbytes" if prefix == "bnb" else prefix


def _line(
    axes: Any,
    best: Sequence[Point],
    name: str,
    colour: str,
    style: str,
    marker: str,
    every: Sequence[Point],
    width: float = 1.4,
) -> None:
    """The best points joined, with intervals and nominal bits; all others of `every` as faint dots."""
    if not best:
        return
    others = [point for point in every if all(point["key"] != one["key"] for one in best)]
    axes.scatter(_megabytes(others), [psnr_of(point) for point in others], s=9, color=colour, alpha=0.35, linewidths=0)
    middle = [psnr_of(point) for point in best]
    spans = [psnr_interval(point) or [psnr_of(point)] * 2 for point in best]
    bars = [
        [value - span[0] for value, span in zip(middle, spans, strict=True)],
        [span[1] - value for value, span in zip(middle, spans, strict=True)],
    ]
    axes.errorbar(
        _megabytes(best), middle, yerr=bars, color=colour, linestyle=style, marker=marker, markersize=5,
        linewidth=width, elinewidth=1, capsize=2, label=name,
    )  # fmt: skip
    for point, value in zip(best, middle, strict=True):
        axes.annotate(
            f"{point['bits']}", (point["total_bytes"] / 1e6, value), (4, -9), textcoords="offset points",
            fontsize=7, color=colour,
        )  # fmt: skip


def _megabytes(points: Sequence[Point]) -> list[float]:
    return [point["total_bytes"] / 1e6 for point in points]
