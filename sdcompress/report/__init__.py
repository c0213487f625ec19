"""A report and its faces: JSON, terminal, Markdown, HTML, picture sheet. Pure functions of raw samples; no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def write_report(report: dict[str, Any], out: Path) -> None:
    """Writes report.json, images.png, report.md, report.html and, for gates, junit.xml, where the pictures are."""
    from sdcompress.report.html import to_html
    from sdcompress.report.junit import to_junit
    from sdcompress.report.markdown import to_markdown
    from sdcompress.report.pictures import draw_sheet

    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    draw_sheet(report, out).save(out / "images.png")
    if report["gates"]:
        (out / "junit.xml").write_text(to_junit(report), encoding="utf-8")
    else:
        (out / "junit.xml").unlink(missing_ok=True)  # of an earlier run with gates
    (out / "report.md").write_text(to_markdown(report), encoding="utf-8")
    (out / "report.html").write_text(to_html(report, out), encoding="utf-8")


def render(report: dict[str, Any], console: Console) -> None:
    """Prints the report's tables and findings on `console`."""
    from sdcompress.report.terminal import print_report

    print_report(report, console)
