"""What an evaluation adds to an artifact's README.md: the measured table, a picture, the hub's metadata."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sdcompress.errors import ArtifactError
from sdcompress.files.artifact import replace_files
from sdcompress.files.manifest import Manifest, read_manifest
from sdcompress.report.findings import findings, subject_text
from sdcompress.report.model import ReportData
from sdcompress.report.table import markdown_table, plain
from sdcompress.report.tables import pipeline_table

CARD = "README.md"
PICTURE = "measured/images.png"  # in the artifact
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


def add_measurements(artifact: Path, report: ReportData, folder: Path) -> None:
    """Rewrite the artifact's card and manifest with what the report in `folder` measured.

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


def check_report(artifact: Path, manifest: Manifest, report: ReportData) -> None:
    """Raise ArtifactError unless the report's compressed side has the artifact's parameters, bytes and recipe."""
    for name in ("parameters", "weights_bytes"):
        made = sum(getattr(entry, name).compressed for entry in manifest.components.values())
        measured = getattr(report.compressed, name)
        if measured != made:
            raise ArtifactError(
                f"{artifact}: has {made:,} {name}, the report says {measured:,}; give the evaluation of this artifact"
            )
    if report.recipe not in (None, manifest.recipe):
        raise ArtifactError(f"{artifact}: was made with another recipe than the report says; evaluate this artifact")


def measured_section(report: ReportData) -> str:
    """Return Markdown of the pipeline's table, the findings and the pictures."""
    lines = [
        BEGIN,
        "## What was measured",
        "",
        f"{plain(subject_text(report))}; {plain(report.environment.cpu)}. "
        f"Prompts: {plain(report.settings.prompt_set)}.",
        "",
        *markdown_table(pipeline_table(report)),
        "",
        *(f"- {plain(finding)}" for finding in findings(report)),
        "",
        f"![the original's pictures above those of this pipeline]({PICTURE})",
        END,
    ]
    return "\n".join(lines)


def add_section(card: str, section: str) -> str:
    """Return the card with the section in place of an earlier one, or at its end."""
    if BEGIN in card and END in card:
        before, rest = card.split(BEGIN, 1)
        return before + section + rest.split(END, 1)[1]
    return f"{card.rstrip()}\n\n{section}\n"


def add_metadata(card: str, manifest: Manifest, report: ReportData) -> str:
    """Return the card with its results in the metadata, as the hub's model-index."""
    from huggingface_hub import EvalResult, ModelCard

    parsed = ModelCard(card)
    parsed.data.model_name = f"{Path(manifest.source.name).name}, compressed"
    parsed.data.eval_results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type="prompts",
            dataset_name=report.settings.prompt_set,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for kind, name, value in _results(report)
    ]
    return str(parsed)


def _results(report: ReportData) -> Iterator[tuple[str, str, float]]:
    """Yield (type, name, value) of each figure that was measured."""
    scorer = f" by {report.scorer.name}" if report.scorer else ""
    similarity = report.similarity
    for kind, name, value in (
        ("clip_score", f"CLIP score{scorer}", report.compressed.clip_score),
        ("clip_score_drift", f"CLIP score minus the original's{scorer}", report.change.clip_score.difference),
        ("psnr", "PSNR in dB against the original with the same seed", similarity.psnr_db.mean),
        ("ssim", "SSIM against the original with the same seed", similarity.ssim.mean),
        ("size_bytes", "bytes on disk", report.compressed.size_bytes),
        ("latency", "seconds per picture", report.compressed.latency_s),
    ):
        if value is not None:
            yield kind, name, value if isinstance(value, int) else float(f"{value:.6g}")
