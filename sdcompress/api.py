"""The public API: everything that the command line can do, in one call each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.progress import Listener, silent

if TYPE_CHECKING:
    from sdcompress.evaluation.settings import EvaluationSettings


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
) -> dict[str, Any]:
    """Compare two pipelines, write the report and its pictures into the folder `out`, and return the report.

    The arguments are those of `sdcompress.evaluation.evaluate.evaluate`.
    """
    from sdcompress.evaluation.evaluate import evaluate as evaluate_pair
    from sdcompress.planning.gates import check_gates
    from sdcompress.report import write_report
    from sdcompress.report.build import build_report

    done = evaluate_pair(
        original, compressed, Path(out), settings=settings, force=force, listener=listener, command=command,
        gates=gates, recipe_gates=recipe_gates, source_options=source_options,
    )  # fmt: skip
    scorer = done.scorer
    report = build_report(
        command=done.command,
        environment=done.environment,
        settings=done.settings,
        scorer=None if scorer is None else {"name": scorer.name, "path": str(scorer.path)},
        models={side: facts.to_json() for side, facts in done.models.items()},
        drawings=[drawing.to_json() for drawing in done.drawings],
        records=[record.to_json() for record in done.records],
        floor_not_measured=done.floor_not_measured,
        swaps=None if done.swaps is None else [swap.to_json() for swap in done.swaps],
    )
    report["gates"] = check_gates(report, done.gates)
    report |= done.made_with
    write_report(report, done.folder)
    return report
