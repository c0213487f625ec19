"""The race as a picture: a bar of seconds and a bar of bytes for each contender."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.contenders.summary import digits, megabytes, summarise

COLOURS = {"torch": "#9a9a9a", "onnxruntime": "#5b8db8", "openvino": "#b58ac4", "sdcompress": "#e07b39"}
FAMILIES = {
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime and optimum",
    "openvino": "OpenVINO",
    "sdcompress": "sdcompress on ONNX Runtime",
}


def draw_race(result: Mapping[str, Any], title: str, to: Path) -> Path:
    """Draws the contenders that ran, in the result's order, into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    rows = [row for row in summarise(result) if "median_s" in row]
    places = list(range(len(rows)))
    colours = [COLOURS[row["family"]] for row in rows]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 1.6 + 0.38 * len(rows)), width_ratios=(3, 2), sharey=True
    )
    medians = [row["median_s"] for row in rows]
    spread = [
        [row["median_s"] - row["low_s"] for row in rows],
        [row["high_s"] - row["median_s"] for row in rows],
    ]
    left.barh(
        places, medians, color=colours, xerr=spread, error_kw={"ecolor": "#333333", "elinewidth": 1, "capsize": 2}
    )
    for place, row in zip(places, rows, strict=True):
        text = f"{digits(row['median_s'])} s, {row['of_baseline']:.2f}x"
        left.annotate(text, (row["high_s"], place), (5, 0), textcoords="offset points", va="center", fontsize=9)
        size = f"{megabytes(row['size_bytes'])} MB"
        right.annotate(
            size, (row["size_bytes"] / 1e6, place), (5, 0), textcoords="offset points", va="center", fontsize=9
        )
    right.barh(places, [row["size_bytes"] / 1e6 for row in rows], color=colours)
    left.set_yticks(places, [row["label"] for row in rows])
    left.invert_yaxis()
    left.set_xlim(0, 1.36 * max(row["high_s"] for row in rows))
    right.set_xlim(0, 1.3 * max(row["size_bytes"] for row in rows) / 1e6)
    left.set_xlabel(f"seconds a {result.get('unit', 'step')}: median, range, and of optimum's")
    right.set_xlabel("size of the weights, MB")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    there = [family for family in FAMILIES if any(row["family"] == family for row in rows)]
    handles = [Patch(color=COLOURS[family], label=FAMILIES[family]) for family in there]
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=110)
    pyplot.close(figure)
    return to
