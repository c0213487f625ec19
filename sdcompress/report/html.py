"""The report as one self-contained HTML file, pictures included: opens from a disk, without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdcompress.report import page_attribution, page_charts, page_tables
from sdcompress.report.attribution_wording import LADDER_NOTE, ladder_notes
from sdcompress.report.layers import FORMAT_COLUMNS, format_rows
from sdcompress.report.page_tiles import UNMEASURED, make_tiles
from sdcompress.report.templates import render_page
from sdcompress.report.thumbnails import Encoding, embed_pairs
from sdcompress.report.wording import MISSING, bytes_text, component_rows, findings, pipeline_rows, subject_text

SECTIONS = (
    ("overview", "Overview"),
    ("quality", "Quality and size"),
    ("pictures", "Pictures"),
    ("latency", "Latency"),
    ("components", "Components"),
    ("layers", "Layers"),
    ("method", "Method"),
)
METHOD = (
    "Each pipeline ran in a fresh process, one at a time, their pictures in turn (original, compressed, compressed,"
    " original, …) after one warm-up. Peak memory is that of the whole process, Python and its libraries included;"
    " “above the imports” leaves those out. Time per picture is the median. Intervals are 95 % bootstrap intervals over"
    " prompts, 10,000 resamples. “not measured” stands wherever there is no figure."
)
_COMPONENT_COLUMNS = ("parameters", "weights", "bits per weight", "time per picture")


def to_html(report: Mapping[str, Any], folder: Path) -> str:
    """The report as HTML, with the pictures that lie in `folder` embedded."""
    from markupsafe import Markup

    pictures, encoding = embed_pairs(page_tables.worst_first(report["samples"]), folder)
    environment = report["environment"]
    data = {
        "samples": page_tables.sample_table(report),
        "layers": page_tables.layer_table(report),
        "pictures": pictures,
    }

    def drawn(chart: page_charts.Chart | None) -> tuple[str, Markup] | None:
        return None if chart is None else (chart[0], Markup(chart[1]))  # charts escape what they are given

    return render_page(
        "report.html.j2",
        ("table.js", "report.js"),
        data,
        title=f"{report['compressed']['name']} against {report['original']['name']}",
        original=report["original"]["name"],
        compressed=report["compressed"]["name"],
        subject=subject_text(report),
        machine=f"{environment['cpu']}, {environment['cores']} cores",
        sections=SECTIONS,
        tiles=make_tiles(report),
        gates=page_tables.gate_rows(report),
        findings=findings(report),
        quality_charts=[drawn(chart) for chart in page_charts.quality_charts(report)],
        component_chart=drawn(page_charts.component_chart(report)),
        drift_chart=drawn(page_charts.drift_chart(report)),
        loss_chart=drawn(page_charts.loss_chart(report)),
        latency_charts=[drawn(chart) for chart in page_charts.latency_charts(report)],
        metrics=page_tables.metric_rows(report),
        not_measured=page_tables.not_measured_lines(report),
        component_metrics=page_tables.component_metric_rows(report),
        floor=page_tables.floor_rows(report),
        attribution_header=page_attribution.ATTRIBUTION_COLUMNS,
        attribution=page_attribution.attribution_rows(report),
        ladder_header=page_attribution.LADDER_COLUMNS,
        ladder=page_attribution.ladder_rows(report),
        ladder_note=LADDER_NOTE,
        ladder_notes=ladder_notes(report),
        pictures_note=_pictures_note(report, len(pictures), encoding),
        pipeline_rows=_told(pipeline_rows(report)),
        component_header=(
            "component",
            *(f"{what}, {side}" for what in _COMPONENT_COLUMNS for side in ("original", "compressed")),
        ),
        component_rows=_told(component_rows(report)),
        format_header=FORMAT_COLUMNS,
        format_rows=_told(format_rows(report)),
        method=METHOD,
        command_text=report["command"],
        environment_rows=_environment_rows(report),
        settings_rows=_settings_rows(report),
        recipe=_recipe_text(report),
        version=environment["versions"].get("sdcompress", UNMEASURED),
    )


def _pictures_note(report: Mapping[str, Any], embedded: int, encoding: Encoding | None) -> str:
    """How the pictures of the page differ from those that were measured."""
    if encoding is None:
        return "No picture is embedded: the PNG files were not found beside the report."
    left = len(report["samples"]) - embedded
    more = f" The {embedded} worst pairs are embedded, {left} more lie beside report.json." if left else ""
    if encoding.quality is None:
        return f"Pictures are re-encoded as {encoding}; PSNR and SSIM were measured on the PNG files.{more}"
    return (
        f"Pictures are re-encoded as {encoding}, which the difference view shows too; "
        f"PSNR and SSIM were measured on the PNG files.{more}"
    )


def _told(rows: list[Any]) -> list[tuple[str, ...]]:
    """The rows of the other faces, with words where those have a dash."""
    return [tuple(UNMEASURED if cell == MISSING else cell for cell in row) for row in rows]


def _environment_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    environment = report["environment"]
    rows = [
        ("processor", f"{environment['cpu']}, {environment['cores']} cores"),
        ("memory", bytes_text(environment.get("memory_bytes"))),
        ("platform", str(environment["platform"])),
        ("Python", str(environment["python"])),
    ]
    for name in ("device", "device_name", "dtype", "threads"):
        sides = [environment[name][side] for side in ("original", "compressed")]
        known = dict.fromkeys(UNMEASURED if value is None else str(value) for value in sides)
        if name != "device_name" or any(sides):  # processors have none
            rows.append((name.replace("_", " "), " / ".join(known)))
    return [*rows, *((name, str(version)) for name, version in environment["versions"].items())]


def _settings_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings, scorer = report["settings"], report["scorer"]
    rows = [("scorer", scorer["name"] if scorer else "none")]
    for name, value in settings.items():
        if not isinstance(value, (dict, list)):
            rows.append((name.replace("_", " "), "default" if value is None else str(value)))
    return rows


def _recipe_text(report: Mapping[str, Any]) -> str | None:
    import yaml

    recipe = report.get("recipe")
    return None if recipe is None else yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
