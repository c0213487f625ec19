"""The runs under a folder over time: size, latency and drift of each model and recipe, and what changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from sdcompress.errors import UserError
from sdcompress.report.charts import Axis, curves
from sdcompress.report.compare import ReportFigures, figures_of
from sdcompress.report.model import ReportData
from sdcompress.report.number_text import bytes_text, number_text, ratio_text, seconds_text, signed_text
from sdcompress.report.pair_table import INFINITE
from sdcompress.report.quality_model import Part
from sdcompress.report.read import find_reports, read_all
from sdcompress.report.table import Cell, Table, rich_table
from sdcompress.report.templates import render_tables, write_json

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
SINCE_RATIOS = ("weights_bytes", "latency_s", "peak_memory_bytes")
SINCE_DIFFERENCES = ("clip_score_drift", "psnr_db")


class Run(ReportFigures):
    """One report's figures, and when it was written.

    Attributes:
        since_before: ratios of costs and differences of qualities against the run before; None where there is none.
    """

    when: str
    report: str
    sdcompress: str | None
    since_before: dict[str, float | None] = Field({})


class RunGroup(Part):
    """The runs of one model with one recipe, the oldest first."""

    model: str
    recipe: str
    runs: list[Run]


class History(Part):
    """The runs under a folder."""

    schema_version: int = SCHEMA_VERSION
    folder: str
    groups: list[RunGroup]

    def to_dict(self) -> dict[str, Any]:
        """Return the history as JSON-safe values: what history.json holds."""
        return self.model_dump(mode="json")


def read_history(folder: Path) -> History:
    """Return the runs under `folder`; a run's time is when its report was written."""
    files = find_reports(folder)
    groups: dict[tuple[str, str], list[Run]] = {}
    for file, report in zip(files, read_all(files), strict=True):
        groups.setdefault((report.original.name, recipe_words(report)), []).append(_run(report, file, folder))
    found = []
    for (model, recipe), runs in sorted(groups.items()):
        ordered = sorted(runs, key=lambda run: (run.when, run.report))
        linked = [
            run.model_copy(update={"since_before": _since(before, run)})
            for before, run in zip([None, *ordered], ordered, strict=False)
        ]
        found.append(RunGroup(model=model, recipe=recipe, runs=linked))
    return History(folder=str(folder), groups=found)


def recipe_words(report: ReportData) -> str:
    """Return the description of the recipe, or the compressed pipeline's name where there is no recipe."""
    return str((report.recipe or {}).get("description") or "").strip() or report.compressed.name


def print_history(history: History, console: Console) -> None:
    """Print a table for each model and recipe."""
    from rich.text import Text

    for group in history.groups:
        console.print(Text(group.model, style="bold"))
        console.print(Text(group.recipe, style="dim"))
        console.print(rich_table(history_table(group.runs)))
        console.print()


def write_history(history: History, out: Path) -> list[Path]:
    """Write history.json and history.html into `out`; return the files."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "history.json", out / "history.html"]
    write_json(files[0], history.to_dict())
    files[1].write_text(to_page(history), encoding="utf-8")
    return files


def to_page(history: History) -> str:
    """Return the history as a self-contained HTML page."""
    groups = [(each.model, each.recipe, _charts(each.runs), history_table(each.runs)) for each in history.groups]
    title = f"{sum(len(group.runs) for group in history.groups)} runs over time"
    return render_tables("history", title, "Runs of the same model with the same recipe, the oldest first.", groups)


def history_table(runs: Sequence[Run]) -> Table:
    """Return a row for each run, its time beside the ratio to that of the run before."""
    rows = []
    for run in runs:
        ratio = run.since_before.get("latency_s_ratio")
        psnr = "identical" if run.identical else number_text(run.psnr_db, 1)
        rows.append(
            (
                run.when.replace("+00:00", "").replace("T", " "),
                run.report,
                Cell(bytes_text(run.weights_bytes), number=run.weights_bytes),
                Cell(seconds_text(run.latency_s), number=run.latency_s),
                Cell("first" if ratio is None else ratio_text(ratio), number=ratio),
                Cell(signed_text(run.clip_score_drift), number=run.clip_score_drift),
                Cell(psnr, number=INFINITE if run.identical else run.psnr_db),
            )
        )
    columns = ("when (UTC)", "report", "weights", "time", "of before", "CLIP drift", "PSNR, dB")
    return Table(columns, rows, ("when (UTC)", "report"))


def _run(report: ReportData, file: Path, folder: Path) -> Run:
    return Run(
        when=datetime.fromtimestamp(file.stat().st_mtime, timezone.utc).isoformat(timespec="seconds"),
        report=str(file.parent.relative_to(folder)) if file.parent != folder else folder.name,
        sdcompress=report.environment.versions.get("sdcompress"),
        **figures_of(report),
    )


def _since(before: Run | None, run: Run) -> dict[str, float | None]:
    changes: dict[str, float | None] = {}
    for name in SINCE_RATIOS:
        old, new = getattr(before, name, None), getattr(run, name)
        changes[f"{name}_ratio"] = new / old if old and new is not None else None
    for name in SINCE_DIFFERENCES:
        old, new = getattr(before, name, None), getattr(run, name)
        changes[f"{name}_difference"] = None if old is None or new is None else new - old
    return changes


def _charts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Caption and SVG of latency and PSNR run by run; nothing for a single run."""
    found = []
    for name, words, text in (
        ("latency_s", "Time per picture", seconds_text),
        ("psnr_db", "Same-seed PSNR, dB", lambda value: f"{value:.4g}"),
    ):
        values = [value for run in runs if (value := getattr(run, name)) is not None]
        if len(values) > 1:
            axes = Axis("run", lambda value: f"{value:.0f}" if value == round(value) else ""), Axis(words, text)
            found.append((f"{words}, run by run", curves([("", values)], *axes, title=words, first=1)))
    return found
