"""The runs under a folder over time: size, latency and drift of each model and recipe, and what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import UserError
from sdcompress.report.charts import Axis, curves
from sdcompress.report.page_tiles import UNMEASURED
from sdcompress.report.read import ReportError, find_reports, read_report
from sdcompress.report.templates import render_page
from sdcompress.report.wording import bytes_text, ratio_text, seconds_text, signed_text

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
COLUMNS = ("when", "report", "weights", "time", "time, of the run before", "CLIP drift", "PSNR, dB")


def read_history(folder: Path) -> dict[str, Any]:
    """The history as JSON-safe values: `groups` of one model and recipe, each with its `runs`, the oldest first.

    A run's time is the report's own `created`, or else when its file was written.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    problems: list[str] = []
    for file in find_reports(folder):
        try:
            report = read_report(file)
            run = _run(report, file, folder)
            groups.setdefault((report["original"]["name"], recipe_words(report)), []).append(run)
        except ReportError as error:
            problems += map(str, error.problems)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            problems.append(f"{file}: is damaged ({type(error).__name__}: {error}); evaluate again")
    if problems:
        raise ReportError(problems)
    found = []
    for (model, recipe), runs in sorted(groups.items()):
        ordered = sorted(runs, key=lambda run: (run["when"], run["report"]))
        for before, run in zip([None, *ordered], ordered, strict=False):
            run["since_before"] = _since(before, run)
        found.append({"model": model, "recipe": recipe, "runs": ordered})
    return {"schema_version": SCHEMA_VERSION, "folder": str(folder), "groups": found}


def recipe_words(report: Mapping[str, Any]) -> str:
    """What the compressed side was made with: its recipe's description, or its own name where there is no recipe."""
    description = ((report.get("recipe") or {}).get("description") or "").strip()
    return description or str(report["compressed"]["name"])


def print_history(history: Mapping[str, Any], console: Console) -> None:
    """Prints a table for each model and recipe."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for group in history["groups"]:
        console.print(Text(group["model"], style="bold"))
        console.print(Text(group["recipe"], style="dim"))
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
        for name in ("when (UTC)", "report", "weights", "time", "of before", "CLIP drift", "PSNR dB"):
            table.add_column(name, justify="left" if name in ("when (UTC)", "report") else "right", overflow="fold")
        for run in group["runs"]:
            table.add_row(*(Text(cell) for cell in _texts(run)))
        console.print(table)


def write_history(history: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes history.json and history.html into `out`; the files."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "history.json", out / "history.html"]
    text = json.dumps(history, indent=1, ensure_ascii=False, allow_nan=False)
    files[0].write_text(text + "\n", encoding="utf-8")
    files[1].write_text(to_page(history), encoding="utf-8")
    return files


def to_page(history: Mapping[str, Any]) -> str:
    """The history as a self-contained HTML page."""
    from markupsafe import Markup

    kinds = ("text", "text", *("number" for _ in COLUMNS[2:]))
    tables, groups = {}, []
    for place, group in enumerate(history["groups"]):
        tables[str(place)] = {
            "columns": [{"name": name, "kind": kind} for name, kind in zip(COLUMNS, kinds, strict=True)],
            "rows": [{"cells": _cells(run)} for run in group["runs"]],
        }
        charts = [(caption, Markup(svg)) for caption, svg in _charts(group["runs"])]
        groups.append({"model": group["model"], "recipe": group["recipe"], "charts": charts})
    count = sum(len(group["runs"]) for group in history["groups"])
    return render_page(
        "history.html.j2", ("table.js", "tables.js"), tables, title=f"{count} runs over time", groups=groups
    )


def _run(report: Mapping[str, Any], file: Path, folder: Path) -> dict[str, Any]:
    created = report.get("created")
    when = datetime.fromisoformat(created) if created else datetime.fromtimestamp(file.stat().st_mtime, timezone.utc)
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return {
        "when": when.astimezone(timezone.utc).isoformat(timespec="seconds"),
        "report": str(file.parent.relative_to(folder)) if file.parent != folder else folder.name,
        "weights_bytes": report["compressed"]["weights_bytes"],
        "size_bytes": report["compressed"]["size_bytes"],
        "latency_s": report["compressed"]["latency_s"],
        "peak_memory_bytes": report["compressed"]["peak_memory_bytes"],
        "clip_score_drift": report["change"]["clip_score"]["difference"],
        "clip_score_drift_interval_95": report["change"]["clip_score"]["interval_95"],
        "psnr_db": report["similarity"]["psnr_db"]["mean"],
        "identical": bool(report["similarity"]["pairs"])
        and report["similarity"]["identical"] == report["similarity"]["pairs"],
        "pictures": report["compressed"]["pictures"],
        "sdcompress": report["environment"]["versions"].get("sdcompress"),
    }


def _since(before: Mapping[str, Any] | None, run: Mapping[str, Any]) -> dict[str, float | None]:
    """Ratios of costs and differences of qualities against the run before; None where there is none."""
    changes: dict[str, float | None] = {}
    for name in ("weights_bytes", "latency_s", "peak_memory_bytes"):
        old, new = (before or {}).get(name), run[name]
        changes[f"{name}_ratio"] = new / old if old and new is not None else None
    for name in ("clip_score_drift", "psnr_db"):
        old, new = (before or {}).get(name), run[name]
        changes[f"{name}_difference"] = None if old is None or new is None else new - old
    return changes


def _texts(run: Mapping[str, Any]) -> list[str]:
    ratio = run["since_before"]["latency_s_ratio"]
    psnr = "identical" if run["identical"] else UNMEASURED if run["psnr_db"] is None else f"{run['psnr_db']:.1f}"
    return [
        run["when"].replace("+00:00", "").replace("T", " "),
        run["report"],
        bytes_text(run["weights_bytes"]),
        seconds_text(run["latency_s"]),
        "first" if ratio is None else ratio_text(ratio),
        UNMEASURED if run["clip_score_drift"] is None else signed_text(run["clip_score_drift"]),
        psnr,
    ]


def _cells(run: Mapping[str, Any]) -> list[Any]:
    """The row's texts, each number's with the number that it sorts by."""
    numbers = (
        run["weights_bytes"],
        run["latency_s"],
        run["since_before"]["latency_s_ratio"],
        run["clip_score_drift"],
        1e9 if run["identical"] else run["psnr_db"],
    )
    when, report, *texts = _texts(run)
    return [when, report, *([text, number] for text, number in zip(texts, numbers, strict=True))]


def _charts(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Latency and PSNR run by run; nothing for a single run."""
    found = []
    for name, words, text in (
        ("latency_s", "Time per picture", seconds_text),
        ("psnr_db", "Same-seed PSNR, dB", lambda value: f"{value:.4g}"),
    ):
        values = [run[name] for run in runs if run[name] is not None]
        if len(values) > 1:
            axes = Axis("run", lambda value: f"{value + 1:.0f}" if value == round(value) else ""), Axis(words, text)
            found.append((f"{words}, run by run", curves([("", values)], *axes, title=words)))
    return found
