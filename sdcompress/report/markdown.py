"""The report as Markdown, with its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdcompress.report.attribution_wording import (
    ATTRIBUTION_HEADER,
    LADDER_HEADER,
    LADDER_NOTE,
    attribution_rows,
    ladder_notes,
    ladder_rows,
)
from sdcompress.report.layers import FORMAT_COLUMNS, LAYER_COLUMNS, format_rows, layer_rows
from sdcompress.report.quality_wording import (
    QUALITY_NOTE,
    component_metric_rows,
    gate_lines,
    quality_header,
    quality_rows,
    verdict_findings,
)
from sdcompress.report.wording import component_rows, findings, pipeline_rows, subject_text

SHOWN_PAIRS = 16
_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>#!|~&"})


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report as a Markdown page; picture paths are relative to the report's folder."""
    environment = report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    scorer = report["scorer"]
    lines = [
        f"# {_plain(report['compressed']['name'])} against {_plain(report['original']['name'])}",
        "",
        f"{_plain(subject_text(report))}. {_plain(environment['cpu'])}, {environment['cores']} cores.",
        "",
        *_table(("", "original", "compressed", "change"), pipeline_rows(report)),
        "",
        *(f"- {_plain(finding)}" for finding in (*findings(report), *verdict_findings(report))),
        "",
        *_quality(report),
        "## Components",
        "",
        *_table(
            ("component", *(f"{what}, {side}" for what in _COMPONENT_COLUMNS for side in ("original", "compressed"))),
            component_rows(report),
        ),
        "",
        *_layers(report),
        "## Pictures",
        "",
        "Original above compressed, same prompt, seed and initial latents.",
        "",
        "![original above compressed](images.png)",
        "",
        *_table(("prompt", "seed", "original", "compressed", "CLIP", "PSNR, SSIM"), _picture_rows(report)),
        *_more(report),
        "",
        "## How it was measured",
        "",
        "Each pipeline ran in a fresh process, one at a time, their pictures in turn (original, compressed, compressed,"
        " original, ...) after one warm-up. Peak memory is that of the whole process, Python and its libraries"
        " included; 'above the imports' leaves those out. Time per picture is the median. Intervals are 95 % bootstrap"
        " intervals over prompts (expanded percentiles), 10,000 resamples. Every raw sample is in `report.json`.",
        "",
        f"Scorer: {_plain(scorer['name']) if scorer else 'none'}. Prompts: {_plain(report['settings']['prompt_set'])}."
        f" {_plain(versions)}; Python {environment['python']}; {_plain(environment['platform'])}.",
        *([] if report["command"] is None else ["", *(f"    {line}" for line in report["command"].splitlines())]),
    ]
    return "\n".join(lines) + "\n"


def _quality(report: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    if gates := gate_lines(report):
        lines += ["## Gates", "", *(f"- {_plain(line)}" for line in gates), ""]
    if rows := quality_rows(report):
        lines += ["## Quality", "", QUALITY_NOTE, "", *_table(quality_header(report), rows), ""]
    if alone := component_metric_rows(report):
        lines += ["Each component alone, given what the original's got:", ""]
        lines += [*(f"- {_plain(name)}: {_plain(told)}" for name, told in alone), ""]
    if rows := attribution_rows(report):
        lines += ["## Attribution", "", "The original with one component of the compressed pipeline at a time.", ""]
        lines += [*_table(ATTRIBUTION_HEADER, [(_plain(row[0]), *row[1:]) for row in rows]), ""]
    if rows := ladder_rows(report):
        lines += ["### Step by step", "", LADDER_NOTE, ""]
        lines += [*_table(LADDER_HEADER, [(_plain(row[0]), *row[1:]) for row in rows]), ""]
    if notes := ladder_notes(report):
        lines += [*(f"- {_plain(line)}" for line in notes), ""]
    return lines


def _layers(report: Mapping[str, Any]) -> list[str]:
    formats = format_rows(report)
    if not formats:
        return []
    return [
        "## Layers",
        "",
        "Signal to quantization noise ratio of weights, in dB: the median over the layers, the lowest in brackets; of"
        " the layers' outputs where what goes into them was calibrated.",
        "",
        *_table(FORMAT_COLUMNS, formats),
        "",
        "<details><summary>Every quantized layer, the largest error first</summary>",
        "",
        *_table(LAYER_COLUMNS, layer_rows(report)),
        "",
        "</details>",
        "",
    ]


_COMPONENT_COLUMNS = ("parameters", "weights", "bits per weight", "time per picture")


def _picture_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for sample in report["samples"][:SHOWN_PAIRS]:
        clip = [sample[side]["clip_score"] for side in ("original", "compressed")]
        rows.append(
            (
                _plain(sample["prompt"]),
                str(sample["seed"]),
                f"![original]({sample['original']['picture']})",
                f"![compressed]({sample['compressed']['picture']})",
                "-" if None in clip else f"{clip[0]:.2f}, {clip[1]:.2f}",
                _similarity(sample),
            )
        )
    return rows


def _similarity(sample: Mapping[str, Any]) -> str:
    if sample["identical"]:
        return "identical"
    return "-" if sample["psnr_db"] is None else f"{sample['psnr_db']:.1f} dB, {sample['ssim']:.3f}"


def _more(report: Mapping[str, Any]) -> list[str]:
    left = len(report["samples"]) - SHOWN_PAIRS
    return ["", f"{left} more pairs are in `images/`; their figures are in `report.json`."] if left > 0 else []


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells are used as they are: whatever a user wrote has been through `_plain`."""
    rule = ["---", *("---:" for _ in header[1:])]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]


def _plain(text: str) -> str:
    """The text as Markdown that shows exactly it: prompts and names may hold anything."""
    return " ".join(text.split()).translate(_SPECIAL)
