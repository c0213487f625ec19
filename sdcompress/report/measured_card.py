"""What an evaluation adds to an artifact's README.md: the measured table, a picture, the hub's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdcompress.errors import ArtifactError
from sdcompress.files.artifact import replace_files
from sdcompress.files.manifest import Manifest, read_manifest
from sdcompress.report.wording import findings, pipeline_rows, subject_text

CARD = "README.md"
PICTURE = "measured/images.png"  # in the artifact
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>#!|~&"})


def add_measurements(artifact: Path, report: Mapping[str, Any], folder: Path) -> None:
    """Rewrites the artifact's card and manifest with what the report in `folder` measured.

    A card that was filled before is filled anew. ArtifactError when the report is of another pipeline.
    """
    manifest = read_manifest(artifact)
    check_report(artifact, manifest, report)
    sheet = folder / "images.png"
    if not sheet.is_file():
        raise ArtifactError(f"{sheet}: missing; evaluate again")
    card = (artifact / CARD).read_text(encoding="utf-8")
    text = add_metadata(add_section(card, measured_section(report)), manifest, report)
    replace_files(artifact, {CARD: text.encode("utf-8"), PICTURE: sheet.read_bytes()})


def check_report(artifact: Path, manifest: Manifest, report: Mapping[str, Any]) -> None:
    """Raises ArtifactError unless the report's compressed side has the artifact's parameters, bytes and recipe."""
    for name in ("parameters", "weights_bytes"):
        made = sum(getattr(entry, name).compressed for entry in manifest.components.values())
        if report["compressed"][name] != made:
            raise ArtifactError(
                f"{artifact}: has {made:,} {name}, the report says {report['compressed'][name]:,}; "
                "give the evaluation of this artifact"
            )
    if report.get("recipe") not in (None, manifest.recipe):
        raise ArtifactError(f"{artifact}: was made with another recipe than the report says; evaluate this artifact")


def measured_section(report: Mapping[str, Any]) -> str:
    """Markdown of the pipeline's table, the findings and the pictures."""
    lines = [
        BEGIN,
        "## What was measured",
        "",
        f"{_plain(subject_text(report))}; {_plain(report['environment']['cpu'])}. "
        f"Prompts: {_plain(report['settings']['prompt_set'])}.",
        "",
        "| | original | compressed | change |",
        "|---|---:|---:|---:|",
        *(f"| {' | '.join(_plain(cell) for cell in row)} |" for row in pipeline_rows(report)),
        "",
        *(f"- {_plain(finding)}" for finding in findings(report)),
        "",
        f"![the original's pictures above those of this pipeline]({PICTURE})",
        END,
    ]
    return "\n".join(lines)


def add_section(card: str, section: str) -> str:
    """The card with the section in place of an earlier one, or at its end."""
    if BEGIN in card and END in card:
        before, rest = card.split(BEGIN, 1)
        return before + section + rest.split(END, 1)[1]
    return f"{card.rstrip()}\n\n{section}\n"


def add_metadata(card: str, manifest: Manifest, report: Mapping[str, Any]) -> str:
    """The card with its results in the metadata, as the hub's model-index."""
    from huggingface_hub import EvalResult, ModelCard

    parsed = ModelCard(card)
    parsed.data.model_name = f"{Path(manifest.source.name).name}, compressed"
    parsed.data.eval_results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type="prompts",
            dataset_name=report["settings"]["prompt_set"],
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for kind, name, value in _results(report)
    ]
    return str(parsed)


def _results(report: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(type, name, value) of each figure that was measured."""
    scorer = f" by {report['scorer']['name']}" if report["scorer"] else ""
    similarity = report["similarity"]
    for kind, name, value in (
        ("clip_score", f"CLIP score{scorer}", report["compressed"]["clip_score"]),
        ("clip_score_drift", f"CLIP score minus the original's{scorer}", report["change"]["clip_score"]["difference"]),
        ("psnr", "PSNR in dB against the original with the same seed", similarity["psnr_db"]["mean"]),
        ("ssim", "SSIM against the original with the same seed", similarity["ssim"]["mean"]),
        ("size_bytes", "bytes on disk", report["compressed"]["size_bytes"]),
        ("latency", "seconds per picture", report["compressed"]["latency_s"]),
    ):
        if value is not None:
            yield kind, name, value if isinstance(value, int) else float(f"{value:.6g}")


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).translate(_SPECIAL)
