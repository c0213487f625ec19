"""The report on a terminal, 80 columns wide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdcompress.report.findings import findings, subject_text
from sdcompress.report.layers import format_table
from sdcompress.report.model import ReportData
from sdcompress.report.table import rich_table
from sdcompress.report.tables import component_table, gate_table, pipeline_table, quality_tables

if TYPE_CHECKING:
    from rich.console import Console


def print_report(report: ReportData, console: Console) -> None:
    """Print the report's tables and findings on `console`."""
    from rich.text import Text

    console.print(Text(report.title, style="bold"))
    console.print(Text(subject_text(report), style="dim"))
    for table in (
        pipeline_table(report),
        component_table(report),
        format_table(report, kept=False),
        *quality_tables(report),
        gate_table(report),
    ):
        if table.rows:
            console.print()
            console.print(rich_table(table))
        for remark in table.remarks:
            console.print(Text(remark))
    console.print()
    for line in findings(report):
        console.print(Text(line))
