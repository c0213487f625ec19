"""The report as Markdown, with its pictures."""

from __future__ import annotations

from collections.abc import Sequence

from sdcompress.report.findings import METHOD, findings, subject_text
from sdcompress.report.layers import format_table, layer_table
from sdcompress.report.model import ReportData
from sdcompress.report.number_text import MISSING, number_text
from sdcompress.report.quality_model import Sample
from sdcompress.report.table import Table, markdown_table, plain
from sdcompress.report.tables import component_table, gate_table, pipeline_table, quality_tables

SHOWN_PAIRS = 16


def to_markdown(report: ReportData) -> str:
    """Return the report as a Markdown page; the paths of pictures are relative to the report's folder."""
    environment = report.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    scorer = "none" if report.scorer is None else report.scorer.name
    lines = [
        f"# {plain(report.title)}",
        "",
        f"{plain(subject_text(report))}. {plain(environment.cpu)}, {environment.cores} cores.",
        "",
        *markdown_table(pipeline_table(report)),
        "",
        *(f"- {plain(finding)}" for finding in findings(report)),
        "",
        *_section(gate_table(report)),
        *(line for table in quality_tables(report) for line in _section(table)),
        *_section(component_table(report)),
        *_section(format_table(report)),
        *_layers(report),
        "## Pictures",
        "",
        "Original above compressed, same prompt, seed and initial latents.",
        "",
        "![original above compressed](images.png)",
        "",
        "| prompt | seed | original | compressed | CLIP | PSNR, SSIM |",
        "| --- | ---: | --- | --- | ---: | ---: |",
        *(_picture_row(sample) for sample in report.samples[:SHOWN_PAIRS]),
        *_more(len(report.samples) - SHOWN_PAIRS),
        "",
        "## How it was measured",
        "",
        f"{METHOD} Every raw sample is in `report.json`.",
        "",
        f"Scorer: {plain(scorer)}. Prompts: {plain(report.settings.prompt_set)}."
        f" {plain(versions)}; Python {environment.python}; {plain(environment.platform)}.",
        *([] if report.command is None else ["", *(f"    {line}" for line in report.command.splitlines())]),
    ]
    return "\n".join(lines) + "\n"


def _section(table: Table) -> Sequence[str]:
    if not table.rows and not table.remarks:
        return ()
    note = [table.note, ""] if table.note else []
    rows = [*markdown_table(table), ""] if table.rows else []
    remarks = [*(f"- {plain(remark)}" for remark in table.remarks), ""] if table.remarks else []
    return [f"## {table.title}", "", *note, *rows, *remarks]


def _layers(report: ReportData) -> Sequence[str]:
    quantized = [layer for layer in report.compressed.layers if layer.format is not None]
    if not quantized:
        return ()
    summary = "<details><summary>Every quantized layer, the largest error first</summary>"
    return [summary, "", *markdown_table(layer_table(quantized)), "", "</details>", ""]


def _picture_row(sample: Sample) -> str:
    clip = [number_text(side.clip_score) for side in (sample.original, sample.compressed)]
    similarity = f"{number_text(sample.psnr_db, 1)} dB, {number_text(sample.ssim, 3)}"
    cells = (
        plain(sample.prompt),
        str(sample.seed),
        f"![original]({sample.original.picture})",
        f"![compressed]({sample.compressed.picture})",
        MISSING if MISSING in clip else ", ".join(clip),
        "identical" if sample.identical else MISSING if sample.psnr_db is None else similarity,
    )
    return f"| {' | '.join(cells)} |"


def _more(left: int) -> Sequence[str]:
    return ["", f"{left} more pairs are in `images/`; their figures are in `report.json`."] if left > 0 else ()
