"""The report on a terminal, 80 columns wide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdcompress.report.attribution_wording import (
    ATTRIBUTION_HEADER,
    LADDER_HEADER,
    attribution_rows,
    ladder_notes,
    ladder_rows,
)
from sdcompress.report.layers import format_rows
from sdcompress.report.quality_wording import (
    component_metric_rows,
    gate_lines,
    quality_header,
    quality_rows,
    verdict_findings,
)
from sdcompress.report.wording import component_rows, findings, pipeline_rows, subject_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Prints the pipeline table, the component table and the findings on `console`."""
    from rich.text import Text

    names = f"{report['compressed']['name']} against {report['original']['name']}"
    console.print(Text(names, style="bold"))
    console.print(Text(subject_text(report), style="dim"))
    console.print(_pipeline_table(report))
    console.print(_component_table(report))
    if layers := _layer_table(report):
        console.print(layers)
    if rows := quality_rows(report):
        console.print(_rows_table(quality_header(report), rows))
    for name, told in component_metric_rows(report):
        console.print(Text(f"{name} alone: {told}."))
    if rows := attribution_rows(report):
        console.print(_rows_table(ATTRIBUTION_HEADER, rows))
    if rows := ladder_rows(report):
        console.print(_rows_table(LADDER_HEADER, rows))
    for line in ladder_notes(report):
        console.print(Text(line))
    for line in (*findings(report), *verdict_findings(report)):
        console.print(Text(line))
    for line in gate_lines(report):
        console.print(Text(line, style="bold red" if line.startswith("FAILED") else ""))


def _pipeline_table(report: Mapping[str, Any]) -> Table:
    table = _table("", "original", "compressed", "change")
    for label, original, compressed, change in pipeline_rows(report):
        table.add_row(label, original, compressed, change)
    return table


def _component_table(report: Mapping[str, Any]) -> Table:
    """Original above compressed in each cell: eight columns side by side do not fit."""
    table = _table("component", "", "parameters", "weights", "bits", "time")
    for name, *cells in component_rows(report):
        table.add_row(name, "original", *cells[0::2])
        table.add_row("", "compressed", *cells[1::2], end_section=True)
    return table


def _layer_table(report: Mapping[str, Any]) -> Table | None:
    """One line for each format of each component, with its layers' errors; None for a pipeline that is no artifact."""
    rows = [row for row in format_rows(report) if not row[1].startswith("left alone")]
    if not rows:
        return None
    table = _table("layers of", "format", "count", "bits", "weights dB", "outputs dB")
    table.columns[1].justify = "left"
    for component, text, count, _, bits, weight, output in rows:
        table.add_row(component, text, count, bits, weight, output)
    return table


def _rows_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = _table(*header)
    for row in rows:
        table.add_row(*row)
    return table


def _table(first: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table
