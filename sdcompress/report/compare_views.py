"""A comparison of reports as a terminal table, a page, a table file, JSON and a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import UserError
from sdcompress.report.charts import Axis, Mark, scatter
from sdcompress.report.compare import COSTS, ComparedReport, Comparison
from sdcompress.report.compare_picture import COST_TEXTS, check_matplotlib, draw_png
from sdcompress.report.number_text import MISSING, bytes_text, number_text, ratio_text, seconds_text, signed_text
from sdcompress.report.pair_table import INFINITE
from sdcompress.report.table import Cell, Table, rich_table
from sdcompress.report.templates import render_tables, write_json

if TYPE_CHECKING:
    from rich.console import Console

COST_WORDS = {"weights_bytes": "size", "latency_s": "latency"}
DOMINATED = "A report is dominated when another costs no more, scores no worse, and is better in one of them."


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """Write compare.json, compare.csv, compare.html and compare.png into `out`; return the files."""
    check_matplotlib()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"compare.{end}" for end in ("json", "csv", "html", "png")]
    write_json(files[0], comparison.to_dict())
    write_csv(comparison, files[1])
    files[2].write_text(to_page(comparison), encoding="utf-8")
    draw_png(comparison, files[3])
    return files


def print_comparison(comparison: Comparison, console: Console, errors: Console) -> None:
    """Print one table on `console`, the smallest report first, and the warnings on `errors`."""
    from rich.text import Text

    for warning in comparison.warnings:
        errors.print(Text(f"warning: {warning}", style="yellow"))
    rows = sorted(comparison.rows, key=lambda row: row.weights_bytes or 0)
    ordered = comparison.model_copy(update={"rows": rows})
    console.print(rich_table(comparison_table(ordered, brief=True)))
    console.print(Text(DOMINATED, style="dim"))


def comparison_table(comparison: Comparison, *, brief: bool = False) -> Table:
    """Return a row for each report; a brief one fits a terminal."""
    metric = comparison.metric.words.removeprefix("same-seed ")
    columns: list[tuple[str, Callable[[ComparedReport], Cell]]] = [
        ("report", lambda row: Cell(row.label)),
        ("weights", lambda row: Cell(bytes_text(row.weights_bytes), number=row.weights_bytes)),
        ("of original", lambda row: Cell(ratio_text(row.size_ratio), number=row.size_ratio)),
        ("time", lambda row: Cell(seconds_text(row.latency_s), number=row.latency_s)),
        ("of original", lambda row: Cell(ratio_text(row.latency_ratio), number=row.latency_ratio)),
        (metric, lambda row: _quality(comparison, row)),
        ("dominated", _dominated),
    ]
    more: dict[str, tuple[str, Callable[[ComparedReport], Cell]]] = {
        "clip_score": ("CLIP drift", lambda row: Cell(signed_text(row.clip_score_drift), number=row.clip_score_drift)),
        "psnr_db": ("PSNR, dB", lambda row: Cell(number_text(row.psnr_db, 1), number=row.psnr_db)),
        "ssim": ("SSIM", lambda row: Cell(number_text(row.ssim, 3), number=row.ssim)),
    }
    if not brief:
        columns[-1:-1] = [
            *(column for name, column in more.items() if name != comparison.metric.name),
            ("bits", lambda row: Cell(number_text(row.bits_per_weight), number=row.bits_per_weight)),
            ("peak memory", lambda row: Cell(bytes_text(row.peak_memory_bytes), number=row.peak_memory_bytes)),
        ]
    rows = [[make(row) for _, make in columns] for row in comparison.rows]
    return Table(tuple(name for name, _ in columns), rows, ("report", "dominated"))


def _quality(comparison: Comparison, row: ComparedReport) -> Cell:
    """The row's figure by the chosen metric, with its unit."""
    quality, name = row.rank, comparison.metric.name
    if quality is None:
        return Cell(MISSING)
    if math.isinf(quality):
        return Cell("identical", number=INFINITE)
    text = f"{quality:+.2f}" if name == "clip_score" else f"{quality:.1f}" if name == "psnr_db" else f"{quality:.4g}"
    return Cell(f"{text} {comparison.metric.unit}".strip(), number=quality)


def _dominated(row: ComparedReport) -> Cell:
    """In what the row is dominated, and by which reports where there is room."""
    by = {COST_WORDS[cost]: label for cost, label in row.dominated_by.items() if label is not None}
    if not by:
        return Cell("no")
    labels = list(dict.fromkeys(by.values()))
    told = f"by {labels[0]}" if len(labels) == 1 else ", ".join(f"{word} by {label}" for word, label in by.items())
    return Cell("in both" if len(by) == len(COSTS) else f"in {next(iter(by))}", detail=f"({told})")


def write_csv(comparison: Comparison, file: Path) -> None:
    """Write a line for each report: figures in full, units in the names, nothing where it was not measured."""
    flat = [_flat(row.model_dump()) for row in comparison.rows]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)


def to_page(comparison: Comparison) -> str:
    """Return the comparison as a self-contained HTML page."""
    title, subject = f"{len(comparison.rows)} reports compared", f"Quality is {comparison.metric.words}. {DOMINATED}"
    charts = draw_charts(comparison)
    note = "" if charts else f"{comparison.metric.words} was not measured in any report."
    group = ("Every report", note, charts, comparison_table(comparison))
    return render_tables("compare", title, subject, [group], [str(warning) for warning in comparison.warnings])


def draw_charts(comparison: Comparison) -> list[tuple[str, str]]:
    """Return caption and SVG of quality over bytes and over latency."""
    metric = comparison.metric
    unit = f", {metric.unit}" if metric.unit else ""
    found = []
    for cost in COSTS:
        size = Axis(*COST_TEXTS[cost])
        marks = [
            Mark(
                row.cost(cost) or 0.0,
                row.rank or 0.0,
                row.label,
                "front" if row.front[cost] else "dominated",
                row.quality_interval_95,
                f"{size.text(row.cost(cost) or 0.0)}, {_quality(comparison, row).text}",
                labelled=bool(row.front[cost]),
            )
            for row in sorted(comparison.rows, key=lambda row: bool(row.front[cost]))
            if row.front[cost] is not None
        ]
        if marks:
            title = f"{metric.words} over {COST_WORDS[cost]}"
            left = len(comparison.rows) - len(marks)
            missing = f"{left} reports are not shown: not measured" if left else "the line joins the others"
            axis = Axis(metric.words + unit, lambda value: f"{value:.4g}")
            caption = f"{title}; hollow points are dominated, {missing}"
            found.append((caption, scatter(marks, size, axis, title=title, front=True)))
    return found


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name in ("front", "dominated_by"):
            flat |= {f"{name}_{cost}": value[cost] for cost in COSTS}
        elif name.endswith("_interval_95"):
            flat |= {f"{name}_low": value[0] if value else None, f"{name}_high": value[1] if value else None}
        else:
            flat[name] = value
    # A spreadsheet takes text that begins with one of these for a formula.
    return {k: f"'{v}" if isinstance(v, str) and v[:1] in "=+-@\t\r" and v else v for k, v in flat.items()}
