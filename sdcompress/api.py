"""The public API: everything that the command line can do, in one call each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.progress import Listener, silent

if TYPE_CHECKING:
    from sdcompress.evaluation.settings import EvaluationSettings
    from sdcompress.report import Report


def evaluate(
    original: str,
    compressed: str,
    out: Path,
    *,
    settings: EvaluationSettings | None = None,
    force: bool = False,
    listener: Listener = silent,
    command: str | None = None,
    gates: Sequence[str] = (),
    recipe_gates: Sequence[str] | None = None,
    source_options: Mapping[str, Any] | None = None,
) -> Report:
    """Compare two pipelines, write the report and its pictures into the folder `out`, and return the report.

    The arguments are those of `sdcompress.evaluation.evaluate.evaluate`.
    """
    from sdcompress.evaluation.evaluate import evaluate as evaluate_pair
    from sdcompress.report import build_report

    done = evaluate_pair(
        original, compressed, Path(out), settings=settings, force=force, listener=listener, command=command,
        gates=gates, recipe_gates=recipe_gates, source_options=source_options,
    )  # fmt: skip
    report = build_report(done)
    report.save(done.folder)
    return report
