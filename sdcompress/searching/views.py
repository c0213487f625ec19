"""A search as a page, a picture, and lines for the terminal."""

from __future__ import annotations

from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

from sdcompress.quant.registry import from_label
from sdcompress.report.charts import Axis, Mark, curves, scatter
from sdcompress.report.number_text import MISSING, bytes_text, number_text
from sdcompress.report.table import Cell, Table
from sdcompress.report.templates import render_tables
from sdcompress.searching.result import LayerScores, SearchResult, psnr_db
from sdcompress.searching.space import KEPT

CHOSEN, CURVE, OTHER = "#d9480f", "#2f5fd0", "#8a94a0"
_DB = Axis("PSNR to the original's pictures, dB", lambda value: f"{value:.0f}")
_BYTES = Axis("weights on disk", bytes_text)


def write_views(result: SearchResult, out: Path) -> None:
    """Write search.html into `out`, and search.png where matplotlib is installed."""
    (out / "search.html").write_text(to_page(result), encoding="utf-8")
    if find_spec("matplotlib") is not None:
        draw_png(result, out / "search.png")


def to_page(result: SearchResult) -> str:
    """Return the search as a self-contained HTML page."""
    limits = ", ".join(f"{name} {text}" for name, text in result.limits.items())
    title = f"{result.model}: recipe for {limits}"
    subject = (
        f"{bytes_text(result.size_bytes)} of weights, {result.size_bytes / result.original_bytes:.3f} of the "
        f"original's {bytes_text(result.original_bytes)}; predicted {psnr_db(result.predicted):.1f} dB"
    )
    frontier = ("Frontier", _deviation_text(result), [(_CAPTION, _frontier(result))], _measured_table(result))
    depth = ("Bits by depth", "", _depth_charts(result), _bits_table(result))
    charts: list[tuple[str, str]] = []
    layers = ("Layers by sensitivity", _SENSITIVITY, charts, _layer_table(result))
    return render_tables("search", title, subject, [frontier, depth, layers])


_CAPTION = (
    "The predicted curve, what was measured (whiskers are 95 % intervals), and, hollow, the recipes that come with "
    "sdcompress, as the scores predict them"
)
_SENSITIVITY = (
    "The damage of 4 bits (or of the candidate nearest to them), as the gradients of the pictures predict it: the PSNR "
    "that the pictures would have if this layer alone were rounded."
)


def summary_lines(result: SearchResult, out: Path) -> list[str]:
    """Return what a search found, in lines for a terminal."""
    ratio = result.size_bytes / result.original_bytes
    lines = [f"{bytes_text(result.size_bytes)} of weights, {ratio:.3f}x of {bytes_text(result.original_bytes)}"]
    lines.append(f"predicted: {psnr_db(result.predicted):.1f} dB (same-seed PSNR); {_deviation_text(result)}")
    for each in result.finalists:
        mark = "chosen" if each.chosen else "meets the target" if each.meets else "misses the target"
        quality = "identical pictures" if each.psnr_db is None else f"{each.psnr_db:.1f} dB"
        spread = "" if each.interval_95 is None else f" [{each.interval_95[0]:.1f}, {each.interval_95[1]:.1f}]"
        lines.append(f"measured {each.name}: {bytes_text(each.size_bytes)}, {quality}{spread}, {mark}")
    if not result.met:
        lines.append("no finalist meets the target; the nearest is written")
    return [*lines, f"recipe: {out / 'recipe.yaml'}", f"all scores: {out / 'search.json'}, {out / 'search.html'}"]


def draw_png(result: SearchResult, file: Path) -> None:
    """Draw the frontier with matplotlib: the predicted curve, trials, finalists and shipped recipes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    points = [(size / 1e6, psnr_db(damage)) for size, damage in result.curve if damage > 0]
    axes.plot(*zip(*points, strict=True), color=CURVE, label="predicted") if points else None
    trials = [(each.size_bytes / 1e6, psnr_db(each.mean)) for each in result.trials if "alone" not in each.name]
    if trials:
        axes.scatter(*zip(*trials, strict=True), facecolors="none", edgecolors=CURVE, label="drawn with rounded layers")
    for shipped in result.shipped:
        place = shipped.size_bytes / 1e6, psnr_db(sum(shipped.damages.values()))
        axes.plot(*place, marker="x", color=OTHER)
        axes.annotate(shipped.name, place, (5, 4), textcoords="offset points", fontsize=8, color=OTHER)
    for each in result.finalists:
        if each.psnr_db is not None:
            low, high = each.interval_95 or (each.psnr_db, each.psnr_db)
            color = CHOSEN if each.chosen else OTHER
            error = [[each.psnr_db - low], [high - each.psnr_db]]
            axes.errorbar(each.size_bytes / 1e6, each.psnr_db, error, color=color, marker="o", capsize=3)
            if each.chosen:
                place = each.size_bytes / 1e6, each.psnr_db
                axes.annotate(f"{each.name}, measured", place, (8, -10), textcoords="offset points", color=CHOSEN)
    axes.set_xlabel("weights on disk, MB")
    axes.set_ylabel(_DB.label)
    axes.grid(color="#e6e9ed")
    axes.legend()
    figure.savefig(file, dpi=130)


def _frontier(result: SearchResult) -> str:
    marks = [Mark(size, psnr_db(damage), "", "front", labelled=False) for size, damage in result.curve if damage > 0]
    marks += [
        Mark(each.size_bytes, psnr_db(each.mean), f"trial, {each.name}", "dominated", labelled=False)
        for each in result.trials
        if "alone" not in each.name
    ]
    marks += [
        Mark(
            each.size_bytes, each.psnr_db, f"{each.name}{' (chosen)' if each.chosen else ''}", "compressed",
            each.interval_95,
        )
        for each in result.finalists
        if each.psnr_db is not None
    ]  # fmt: skip
    marks += [
        Mark(each.size_bytes, psnr_db(sum(each.damages.values())), each.name, "dominated") for each in result.shipped
    ]
    return scatter(marks, _BYTES, _DB, title="PSNR over bytes", front=True)


def _measured_table(result: SearchResult) -> Table:
    rows = [
        [
            Cell(f"trial: {each.name}"),
            Cell(bytes_text(each.size_bytes), number=each.size_bytes),
            Cell(number_text(psnr_db(each.predicted), 1), number=psnr_db(each.predicted)),
            Cell(number_text(psnr_db(each.mean), 1), number=psnr_db(each.mean)),
        ]
        for each in result.trials
    ]
    rows += [
        [
            Cell(f"finalist: {each.name}{', chosen' if each.chosen else ''}"),
            Cell(bytes_text(each.size_bytes), number=each.size_bytes),
            Cell(MISSING),
            Cell(MISSING if each.psnr_db is None else number_text(each.psnr_db, 1), number=each.psnr_db),
        ]
        for each in result.finalists
    ]
    return Table(("measured", "weights", "predicted, dB", "measured, dB"), rows, ("measured",))


def _deviation_text(result: SearchResult) -> str:
    """Say how well predictions held in the trials."""
    checked = [each for each in result.trials if "alone" not in each.name and each.predicted > 0]
    if not checked:
        return "predictions were not checked"
    worst = max((psnr_db(each.mean) - psnr_db(each.predicted) for each in checked), key=abs)
    return f"uncorrected predictions were off by at most {worst:+.1f} dB in {len(checked)} trials"


def _depth_charts(result: SearchResult) -> list[tuple[str, str]]:
    """Return caption and chart of the bits of each component's layers in the order of the network."""
    charts = []
    for component, layers in _by_component(result).items():
        bits = [float(_bits(result, layer)) for layer in layers if layer.damages is not None]
        if len(bits) > 1:
            axis = Axis("layer, in the order of the network", lambda value: f"{value:.0f}")
            chart = curves([(component, bits)], axis, Axis("bits", lambda value: f"{value:.0f}"), title=component)
            charts.append((f"{component}: bits of its layers", chart))
    return charts


def _bits_table(result: SearchResult) -> Table:
    rows = []
    for component, layers in _by_component(result).items():
        groups: dict[str, list[LayerScores]] = defaultdict(list)
        for layer in layers:
            groups[result.allocation[f"{component}:{layer.layer}"]].append(layer)
        for label, members in sorted(groups.items(), key=lambda item: (_label_bits(item[0]), item[0])):
            size = sum(each.weight_bytes[each.labels.index(label)] for each in members)
            parameters = sum(each.parameters for each in members)
            rows.append(
                [
                    Cell(component), Cell(label), Cell(str(len(members)), number=len(members)),
                    Cell(f"{parameters:,}", number=parameters), Cell(bytes_text(size), number=size),
                ]
            )  # fmt: skip
    return Table(("component", "format", "layers", "weights", "bytes"), rows, ("component", "format"))


def _layer_table(result: SearchResult) -> Table:
    rows = []
    for layer in result.scores.layers:
        if layer.damages is None:
            continue
        probe = min(range(len(layer.labels)), key=lambda place: abs(_label_bits(layer.labels[place]) - 4))
        value = psnr_db(layer.damages[probe])
        rows.append(
            [
                Cell(f"{layer.component}.{layer.layer}"), Cell(f"{layer.parameters:,}", number=layer.parameters),
                Cell(number_text(value, 1), number=value),
                Cell(result.allocation[f"{layer.component}:{layer.layer}"]),
            ]
        )  # fmt: skip
    rows.sort(key=lambda row: row[2].number if row[2].number is not None else 0.0)
    return Table(("layer", "weights", "dB at 4 bits", "format"), rows, ("layer", "format"))


def _by_component(result: SearchResult) -> dict[str, list[LayerScores]]:
    found: dict[str, list[LayerScores]] = {}
    for layer in result.scores.layers:
        found.setdefault(layer.component, []).append(layer)
    return found


def _bits(result: SearchResult, layer: LayerScores) -> int:
    return _label_bits(result.allocation[f"{layer.component}:{layer.layer}"])


def _label_bits(label: str) -> int:
    return 16 if label == KEPT else from_label(label).bits
