"""A comparison of reports as a terminal table, a page, a table file, JSON and a picture."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import UserError
from sdcompress.report.charts import Axis, Mark, scatter
from sdcompress.report.compare import COSTS, quality_of, warning_texts
from sdcompress.report.compare_picture import COST_TEXTS, check_matplotlib, draw_png
from sdcompress.report.page_tiles import UNMEASURED
from sdcompress.report.templates import render_page
from sdcompress.report.wording import bytes_text, ratio_text, seconds_text, signed_text

if TYPE_CHECKING:
    from rich.console import Console

COST_AXES = {cost: Axis(label, text) for cost, (label, text) in COST_TEXTS.items()}
COST_WORDS = {"weights_bytes": "size", "latency_s": "latency"}
COLUMNS = (
    ("report", "text"),
    ("weights", "number"),
    ("of original", "number"),
    ("bits", "number"),
    ("peak memory", "number"),
    ("time", "number"),
    ("of original", "number"),
    ("CLIP drift", "number"),
    ("PSNR, dB", "number"),
    ("SSIM", "number"),
    ("dominated", "text"),
)


def write_comparison(comparison: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes compare.json, compare.csv, compare.html and compare.png into `out`; the files."""
    check_matplotlib()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"compare.{end}" for end in ("json", "csv", "html", "png")]
    files[0].write_text(json.dumps(comparison, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    write_csv(comparison, files[1])
    files[2].write_text(to_page(comparison), encoding="utf-8")
    draw_png(comparison, files[3])
    return files


def print_comparison(comparison: Mapping[str, Any], console: Console, errors: Console) -> None:
    """Prints one table on `console` and the warnings on `errors`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for text in warning_texts(comparison["warnings"]):
        errors.print(Text(f"warning: {text}", style="yellow"))
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
    words = comparison["metric"]["words"].removeprefix("same-seed ")
    table.add_column("report", overflow="fold", min_width=12)
    for name in ("weights", "", "time", "", words, "dominated"):
        table.add_column(name, justify="left" if name == "dominated" else "right")
    for row in sorted(comparison["rows"], key=lambda row: row["weights_bytes"] or 0):
        table.add_row(
            Text(row["label"]),
            bytes_text(row["weights_bytes"]),
            ratio_text(row["size_ratio"]),
            seconds_text(row["latency_s"]),
            ratio_text(row["latency_ratio"]),
            quality_text(comparison, row),
            dominated_text(row),
            style="dim" if dominated_text(row) == "in both" else "",
        )
    console.print(table)
    console.print(
        Text("Dominated: another report costs no more and scores no worse, and is better in one.", style="dim")
    )


def quality_text(comparison: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The row's figure by the chosen metric, with its unit."""
    quality = quality_of(row)
    if quality is None:
        return UNMEASURED
    if math.isinf(quality):
        return "identical"
    name = comparison["metric"]["name"]
    text = f"{quality:+.2f}" if name == "clip_score" else f"{quality:.1f}" if name == "psnr_db" else f"{quality:.4g}"
    return f"{text} {comparison['metric']['unit']}".strip()


def dominated_text(row: Mapping[str, Any]) -> str:
    """In what the row is dominated: "", "in size", "in latency" or "in both"."""
    found = [COST_WORDS[cost] for cost in COSTS if row["front"][cost] is False]
    return "in both" if len(found) == len(COSTS) else "".join(f"in {word}" for word in found)


def write_csv(comparison: Mapping[str, Any], file: Path) -> None:
    """Writes a line for each report; figures in full, units in the names, nothing where it was not measured."""
    flat = [_flat(row) for row in comparison["rows"]]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)


def to_page(comparison: Mapping[str, Any]) -> str:
    """The comparison as a self-contained HTML page."""
    from markupsafe import Markup

    rows = [{"cells": _cells(row), "className": ""} for row in comparison["rows"]]
    data = {"rows": {"columns": [{"name": name, "kind": kind} for name, kind in COLUMNS], "rows": rows}}
    charts = [(caption, Markup(svg)) for caption, svg in draw_charts(comparison)]
    return render_page(
        "compare.html.j2",
        ("table.js", "tables.js"),
        data,
        title=f"{len(rows)} reports compared",
        metric=comparison["metric"]["words"],
        warnings=warning_texts(comparison["warnings"]),
        charts=charts,
    )


def draw_charts(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Caption and SVG of quality over bytes and over latency."""
    metric = comparison["metric"]
    unit = f", {metric['unit']}" if metric["unit"] else ""
    found = []
    for cost in COSTS:
        marks = [
            Mark(
                row[cost],
                quality_of(row) or 0.0,
                row["label"],
                "front" if row["front"][cost] else "dominated",
                tuple(row["quality_interval_95"]) if row["quality_interval_95"] else None,  # type: ignore[arg-type]
                f"{COST_AXES[cost].text(row[cost])}, {quality_text(comparison, row)}",
                labelled=bool(row["front"][cost]),
            )
            for row in sorted(comparison["rows"], key=lambda row: bool(row["front"][cost]))
            if row["front"][cost] is not None
        ]
        if marks:
            title = f"{metric['words']} over {COST_WORDS[cost]}"
            axis = Axis(metric["words"] + unit, lambda value: f"{value:.4g}")
            caption = f"{title}; hollow points are dominated, {_missing(comparison, cost)}"
            found.append((caption, scatter(marks, COST_AXES[cost], axis, title=title, front=True)))
    return found


def _missing(comparison: Mapping[str, Any], cost: str) -> str:
    left = sum(row["front"][cost] is None for row in comparison["rows"])
    return f"{left} reports are not shown: not measured" if left else "the line joins the others"


def _cells(row: Mapping[str, Any]) -> list[Any]:
    def cell(value: float | None, text: Any) -> list[Any]:
        return [UNMEASURED if value is None else text(value), value]

    return [
        row["label"],
        cell(row["weights_bytes"], bytes_text),
        cell(row["size_ratio"], ratio_text),
        cell(row["bits_per_weight"], lambda value: f"{value:.2f}"),
        cell(row["peak_memory_bytes"], bytes_text),
        cell(row["latency_s"], seconds_text),
        cell(row["latency_ratio"], ratio_text),
        cell(row["clip_score_drift"], signed_text),
        ["identical", 1e9] if row["identical"] else cell(row["psnr_db"], lambda value: f"{value:.1f}"),
        cell(row["ssim"], lambda value: f"{value:.3f}"),
        "; ".join(f"{COST_WORDS[c]}: by {row['dominated_by'][c]}" for c in COSTS if row["dominated_by"][c]) or "no",
    ]


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
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
