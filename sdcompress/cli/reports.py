"""Commands about reports that exist already: compare, history and card."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, for machines.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    for command in (compare, history, card):
        app.command()(command)


def compare(
    reports: Annotated[list[Path], typer.Argument(help="Folders of reports, or report.json files.")],
    metric: Annotated[
        str, typer.Option(help="psnr_db, clip_score, ssim, or another metric the reports have.")
    ] = "psnr_db",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write compare.html, .png, .csv and .json into this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare many reports: one table, and which of them others dominate in size and latency."""
    from sdcompress.report.compare import compare_reports
    from sdcompress.report.compare_views import print_comparison, write_comparison
    from sdcompress.report.read import read_reports

    comparison = compare_reports(read_reports(reports), metric)
    files = write_comparison(comparison, out) if out else []  # before a reader such as `head` may end the process
    if as_json:
        for warning in comparison.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        typer.echo(json.dumps(comparison.to_dict(), indent=1, ensure_ascii=False))
    else:
        print_comparison(comparison, _out(), Console(stderr=True))
    for file in files:
        typer.echo(file, err=as_json)


def history(
    folder: Annotated[Path, typer.Argument(help="A folder with runs in it, at any depth.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write history.html and history.json into this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the runs under a folder over time: size, latency and drift for each model and recipe."""
    from sdcompress.report.history import print_history, read_history, write_history

    found = read_history(folder)
    files = write_history(found, out) if out else []
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        print_history(found, _out())
    for file in files:
        typer.echo(file, err=as_json)


def card(
    artifact: Annotated[Path, typer.Argument(help="A folder that sdcompress wrote.")],
    report: Annotated[Path, typer.Argument(help="The folder of its evaluation.")],
) -> None:
    """Put the measured table and pictures into an artifact's model card, in the hub's format."""
    fill_card(artifact, report)
    typer.echo(artifact / "README.md")


def fill_card(artifact: Path, report: Path) -> None:
    """Puts what the evaluation in the folder `report` measured into the artifact's model card."""
    from sdcompress.report.measured_card import add_measurements
    from sdcompress.report.read import read_report, report_file

    add_measurements(artifact, read_report(report), report_file(report).parent)


@contextmanager
def logged(out: Path, tracker: str | None) -> Iterator[None]:
    """Logs the report that the block writes into `out`; a tracker that is not there stops it before it begins."""
    from sdcompress.report.tracking import check_tracker, log_report

    if tracker is not None:
        check_tracker(tracker)
    yield
    if tracker is not None:
        from sdcompress.report.read import read_report

        log_report(tracker, read_report(out), out)


def _out() -> Console:
    return Console(soft_wrap=not sys.stdout.isatty())
