"""The report as one self-contained HTML file, pictures included, and as a fragment for notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdcompress.evaluation.samples import SIDES
from sdcompress.report import page_charts
from sdcompress.report.findings import METHOD, findings, subject_text
from sdcompress.report.layers import format_table, layer_table
from sdcompress.report.model import ReportData
from sdcompress.report.number_text import bytes_text
from sdcompress.report.pair_table import pair_table, worst_first
from sdcompress.report.table import UNMEASURED, Table
from sdcompress.report.tables import component_table, gate_table, pipeline_table, quality_tables
from sdcompress.report.templates import render_fragment, render_page
from sdcompress.report.thumbnails import Encoding, embed_pairs
from sdcompress.report.tiles import make_tiles

SECTIONS = (
    ("overview", "Overview"),
    ("quality", "Quality"),
    ("pictures", "Pictures"),
    ("costs", "Size, memory and time"),
    ("layers", "Layers"),
    ("method", "Method"),
)


def to_html(report: ReportData, folder: Path) -> str:
    """Return the report as a page that needs no network, with the pictures that are in `folder` embedded."""
    samples = worst_first(report.samples)
    pictures, encoding = embed_pairs(samples, folder)
    environment = report.environment
    layers = layer_table(report.compressed.layers)
    data = {"samples": pair_table(samples).to_data(), "layers": layers.to_data(), "pictures": pictures}
    return render_page(
        "report.html.j2",
        ("table.js", "report.js"),
        data,
        title=report.title,
        subject=f"{subject_text(report)}. {environment.cpu}, {environment.cores} cores",
        sections=SECTIONS,
        tiles=make_tiles(report),
        gates=gate_table(report),
        findings=findings(report),
        quality_charts=page_charts.quality_charts(report),
        quality_tables=[table for table in quality_tables(report) if table.rows or table.remarks],
        attributed=report.attribution is not None,
        pictures_note=_pictures_note(len(samples), len(pictures), encoding),
        latency_charts=page_charts.latency_charts(report),
        cost_tables=[pipeline_table(report), component_table(report)],
        formats=format_table(report),
        layers=layers,
        method=METHOD,
        command_text=report.command,
        settings=_settings(report),
        environment=_environment(report),
        recipe=_recipe_text(report),
        version=environment.versions.get("sdcompress", UNMEASURED),
    )


def to_fragment(report: ReportData) -> str:
    """Return the headline figures and the table of both pipelines as HTML that any page can hold."""
    return render_fragment(
        "notebook.html.j2",
        title=report.title,
        subject=subject_text(report),
        tiles=make_tiles(report),
        pipeline=pipeline_table(report),
        gates=gate_table(report),
    )


def _pictures_note(pairs: int, embedded: int, encoding: Encoding | None) -> str:
    """How the pictures of the page differ from those that were measured."""
    if encoding is None:
        return "No picture is embedded: the PNG files were not found beside the report."
    left = pairs - embedded
    more = f" The {embedded} worst pairs are embedded, {left} more are beside report.json." if left else ""
    shown = "" if encoding.quality is None else " The difference view shows the re-encoded pictures."
    return f"Pictures are re-encoded as {encoding}; PSNR and SSIM were measured on the PNG files.{shown}{more}"


def _environment(report: ReportData) -> Table:
    environment = report.environment
    rows = [
        ("processor", f"{environment.cpu}, {environment.cores} cores"),
        ("memory", bytes_text(environment.memory_bytes)),
        ("platform", environment.platform),
        ("Python", environment.python),
    ]
    for name in ("device", "device_name", "dtype", "threads"):
        sides: list[Any] = [getattr(environment, name)[side] for side in SIDES]
        known = dict.fromkeys(UNMEASURED if value is None else str(value) for value in sides)
        if name != "device_name" or any(sides):  # processors have none
            rows.append((name.replace("_", " "), " / ".join(known)))
    rows += environment.versions.items()
    return Table(("", "value"), rows, ("", "value"), "Environment")


def _settings(report: ReportData) -> Table:
    rows = [("scorer", report.scorer.name if report.scorer else "none")]
    for name, value in report.settings.scalars().items():
        rows.append((name.replace("_", " "), "default" if value is None else str(value)))
    return Table(("", "value"), rows, ("", "value"), "Settings")


def _recipe_text(report: ReportData) -> str | None:
    import yaml

    return None if report.recipe is None else yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True)
