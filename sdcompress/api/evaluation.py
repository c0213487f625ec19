"""Evaluation: two pipelines side by side, many reports side by side, and what was measured in the model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdcompress.api.compression import Artifact, compress, made_of
from sdcompress.api.models import SourceOptions
from sdcompress.errors import ArtifactError, UserError
from sdcompress.planning.recipe import load_recipe
from sdcompress.progress.choice import ProgressOption, listening

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sdcompress.evaluation.settings import EvaluationSettings
    from sdcompress.report import Report
    from sdcompress.report.compare import Comparison
    from sdcompress.report.history import History

ARTIFACT_NAME = "artifact"  # the folder of `run`'s artifact, beside the report


@dataclass(frozen=True)
class RunResult:
    """What `run` gives: the artifact, and the report that compares it with the original."""

    artifact: Artifact
    report: Report


def evaluate(
    original: str | Path,
    compressed: str | Path,
    out: str | Path,
    *,
    settings: EvaluationSettings | None = None,
    gates: Sequence[str] = (),
    recipe_gates: Sequence[str] | None = None,
    force: bool = False,
    command: str | None = None,
    progress: ProgressOption = "auto",
    **source_options: Unpack[SourceOptions],
) -> Report:
    """Compare two pipelines: size, memory, latency, scores, and the pictures themselves.

    The same call continues an evaluation that was interrupted.

    Args:
        original: the pipeline to compare with, as `open_source` takes it, on this disk.
        compressed: the pipeline to judge.
        out: the folder for the report, the pictures and all raw samples.
        settings: prompts, sampler, device and what is measured; the defaults suit most pipelines.
        gates: thresholds such as `psnr_db>=30`; `report.gates` says which failed.
        recipe_gates: thresholds to use in place of those of the recipe that an artifact was made with.
        force: replace an earlier evaluation in `out`.
        command: the command to name in the report.
        progress: who is told how far it is; see `sdcompress.progress.choice.listening`.
        source_options: how the original is read.

    Raises:
        EvaluationError: the pipelines cannot be compared as asked, or a process that runs one of them failed.
        UserError: a setting or gate makes no sense.

    Examples:
        >>> report = evaluate("tiny-sd", "./tiny-sd-int8", "./report")  # doctest: +SKIP
        >>> report.save("./report")  # doctest: +SKIP
    """
    from sdcompress.evaluation.evaluate import evaluate as run_evaluation
    from sdcompress.report import build_report

    with listening(progress) as listener:
        evaluation = run_evaluation(
            str(original),
            str(compressed),
            Path(out),
            settings=settings,
            force=force,
            command=command,
            gates=gates,
            recipe_gates=recipe_gates,
            source_options=source_options,
            listener=listener,
        )
    report = build_report(evaluation)
    report.save(Path(out))
    return report


def run(
    model: str | Path,
    recipe: str | Path,
    out: str | Path,
    *,
    settings: EvaluationSettings | None = None,
    gates: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
    command: str | None = None,
    progress: ProgressOption = "auto",
    **source_options: Unpack[SourceOptions],
) -> RunResult:
    """Compress a model, then compare the result with the original.

    The artifact goes to `out/artifact`, the report and the pictures to `out`, and what was measured into the
    artifact's model card. Arguments and errors are those of `compress` and `evaluate`.

    Examples:
        >>> result = run("tiny-sd", "onnx-int8", "./out")  # doctest: +SKIP
        >>> result.report  # doctest: +SKIP
    """
    from sdcompress.planning.gates import parse_gate
    from sdcompress.report.measured_card import add_measurements

    out, loaded = Path(out), load_recipe(str(recipe))
    for gate in gates:
        parse_gate(gate)  # before an hour of compressing
    folder = out / ARTIFACT_NAME
    if resume and folder.exists():
        artifact = made_of(folder, str(model), loaded, source_options)
    else:
        if not (resume or force) and (out / "report.json").exists():
            raise ArtifactError(f"{out}: holds a report already; choose another --out, or --force to replace it")
        made = compress(
            model, loaded, folder, resume=resume, force=force, progress=progress, **source_options
        )  # fmt: skip
        if made is None:
            raise UserError("run: works in one process; use `compress` with `accelerate launch`, then `evaluate`")
        artifact = made
    report = evaluate(
        model,
        folder,
        out,
        settings=settings,
        gates=gates,
        recipe_gates=loaded.gates,
        force=force,
        command=command,
        progress=progress,
        **source_options,
    )
    add_measurements(folder, report, out)
    return RunResult(artifact, report)


def compare(reports: Sequence[str | Path], *, metric: str = "psnr_db", out: str | Path | None = None) -> Comparison:
    """Compare many reports: one table, and which of them others dominate in size and latency.

    Args:
        reports: folders of reports, or report.json files.
        metric: `psnr_db`, `clip_score`, `ssim` or another metric that the reports have.
        out: a folder for compare.html, compare.png, compare.csv and compare.json; None to write nothing.

    Returns:
        The comparison: `rows`, one for each report, and `warnings` where reports differ in more than the artifact.

    Raises:
        EvaluationError: a report cannot be read, or has no such metric.

    Examples:
        >>> compare(["out/int8", "out/int4"]).rows  # doctest: +SKIP
    """
    from sdcompress.report.compare import compare_reports
    from sdcompress.report.compare_views import write_comparison
    from sdcompress.report.read import read_reports

    comparison = compare_reports(read_reports([Path(report) for report in reports]), metric)
    if out is not None:
        write_comparison(comparison, Path(out))
    return comparison


def history(folder: str | Path, *, out: str | Path | None = None) -> History:
    """Return the runs under a folder over time: size, latency and drift for each model and recipe.

    Args:
        folder: a folder with reports in it, at any depth.
        out: a folder for history.html and history.json; None to write nothing.
    """
    from sdcompress.report.history import read_history, write_history

    found = read_history(Path(folder))
    if out is not None:
        write_history(found, Path(out))
    return found


def fill_card(artifact: str | Path, report: str | Path) -> None:
    """Write what an evaluation measured into an artifact's model card, in the hub's format.

    Args:
        artifact: a folder that sdcompress wrote. Its manifest is brought up to date, so that `verify` still holds.
        report: the folder of its evaluation, or the report.json in it.

    Raises:
        ArtifactError: the folder is no artifact.
        EvaluationError: the report is of another artifact.
    """
    from sdcompress.report.measured_card import add_measurements
    from sdcompress.report.read import read_report, report_file

    file = Path(report)
    add_measurements(Path(artifact), read_report(file), report_file(file).parent)
