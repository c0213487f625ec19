"""Commands that measure and commands about reports: evaluate, run, compare, history and card."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdcompress import api
from sdcompress.cli.compression import show_graphs
from sdcompress.cli.evaluation_options import with_evaluation_options
from sdcompress.cli.shared import (
    AsJson,
    Force,
    Model,
    Out,
    RecipeName,
    Resume,
    command_line,
    interruptible,
    stderr,
    stdout,
)
from sdcompress.cli.source_options import with_source_options
from sdcompress.errors import GateFailed
from sdcompress.progress.terminal import terminal_bars

if TYPE_CHECKING:
    from sdcompress.evaluation.settings import EvaluationSettings
    from sdcompress.report import Report

Gates = Annotated[
    list[str] | None, typer.Option("--gate", help="A threshold, such as 'clip_score_drift>=-0.3'; repeatable.")
]
LogTo = Annotated[str | None, typer.Option("--log-to", help="Also log the report: mlflow or wandb.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for measuring in (evaluate, run):
        app.command()(with_evaluation_options(with_source_options(measuring)))
    for reading in (compare, history, card):
        app.command()(reading)


def evaluate(
    original: Annotated[str, typer.Argument(help="The pipeline to compare with: a name, a folder or a checkpoint.")],
    compressed: Annotated[str, typer.Argument(help="The pipeline to judge.")],
    out: Out,
    settings: EvaluationSettings,
    source_options: dict[str, Any],
    gate: Gates = None,
    force: Force = False,
    log_to: LogTo = None,
) -> None:
    """Compare two pipelines: size, memory, latency, CLIP score, and the pictures themselves."""
    with logged(out, log_to):
        with interruptible("what was finished is kept, the same command continues"), terminal_bars(stderr()) as bars:
            report = api.evaluate(
                original,
                compressed,
                out,
                settings=settings,
                gates=gate or (),
                force=force,
                command=command_line(),
                progress=bars,
                **source_options,
            )
        _show(report, out)
    _fail(report)


def run(
    model: Model,
    recipe: RecipeName,
    out: Out,
    settings: EvaluationSettings,
    source_options: dict[str, Any],
    gate: Gates = None,
    resume: Resume = False,
    force: Force = False,
    log_to: LogTo = None,
) -> None:
    """Compress, then evaluate: the artifact goes to OUT/artifact, the report and pictures to OUT."""
    with logged(out, log_to):
        with interruptible("what was finished is kept, --resume continues"), terminal_bars(stderr()) as bars:
            result = api.run(
                model,
                recipe,
                out,
                settings=settings,
                gates=gate or (),
                resume=resume,
                force=force,
                command=command_line(),
                progress=bars,
                **source_options,
            )
        show_graphs(result.artifact)
        _show(result.report, out)
    _fail(result.report)


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
    from sdcompress.report.compare_views import print_comparison

    comparison = api.compare(reports, metric=metric, out=out)
    if as_json:
        for warning in comparison.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        typer.echo(json.dumps(comparison.to_dict(), indent=1, ensure_ascii=False))
    else:
        print_comparison(comparison, stdout(), stderr())
    _list_files(out, "compare", as_json)


def history(
    folder: Annotated[Path, typer.Argument(help="A folder with runs in it, at any depth.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write history.html and history.json into this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the runs under a folder over time: size, latency and drift for each model and recipe."""
    from sdcompress.report.history import print_history

    found = api.history(folder, out=out)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        print_history(found, stdout())
    _list_files(out, "history", as_json)


def card(
    artifact: Annotated[Path, typer.Argument(help="A folder that sdcompress wrote.")],
    report: Annotated[Path, typer.Argument(help="The folder of its evaluation.")],
) -> None:
    """Put the measured table and pictures into an artifact's model card, in the hub's format."""
    api.fill_card(artifact, report)
    typer.echo(artifact / "README.md")


def _list_files(out: Path | None, name: str, to_stderr: bool) -> None:
    """Print the files that were written into `out`, if any were."""
    for file in sorted(out.glob(f"{name}.*")) if out is not None else ():
        typer.echo(file, err=to_stderr)


def _show(report: Report, out: Path) -> None:
    """Print the report's tables, and where its files are."""
    from sdcompress.report import print_report

    print_report(report, stdout())
    typer.echo(f"report: {out / 'report.json'}, {out / 'report.md'}, {out / 'report.html'}")
    typer.echo(f"pictures: {out / 'images.png'}")
    if report.gates:
        typer.echo(f"gates: {out / 'junit.xml'}")


def _fail(report: Report) -> None:
    """Raise GateFailed with a line for each gate that failed, if any did."""
    from sdcompress.report.gates import failures

    failed = failures(report.gates)
    if failed:
        raise GateFailed("\n".join(failed))


@contextmanager
def logged(out: Path, tracker: str | None) -> Iterator[None]:
    """Log the report that the block writes into `out`. An unknown tracker stops the command before the block."""
    from sdcompress.report.tracking import check_tracker, log_report

    if tracker is not None:
        check_tracker(tracker)
    yield
    if tracker is not None:
        from sdcompress.report.read import read_report

        log_report(tracker, read_report(out), out)
