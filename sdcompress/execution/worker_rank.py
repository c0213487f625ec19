"""The worker ranks of a distributed launch: what the processes do that `accelerate launch` starts beside rank 0.

Rank 0 writes the artifact. The others only take part in its training runs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from sdcompress.backends.component import TrainingContext
from sdcompress.errors import Problem, UserError
from sdcompress.execution.pruning import apply_pruning_steps
from sdcompress.execution.run_state import STATE_NAME, training_folder
from sdcompress.files.artifact import partial_folder
from sdcompress.planning.plan import Plan


def is_worker_rank() -> bool:
    """Return whether another process of this launch writes the artifact."""
    return int(os.environ.get("RANK", "0")) > 0


def train_as_worker(plan: Plan, out: Path, *, resume: bool) -> None:
    """Take part in every training run of the plan that rank 0 makes, and write nothing.

    Raises:
        UserError: a component is pruned by calibration before it is trained, which only one process can do.
    """
    finished = _finished_components(partial_folder(out)) if resume else frozenset()
    for name in plan.modified_source.components:
        steps = plan.steps_of(name)
        training = [index for index, step in enumerate(steps) if step.planned.trains]
        if name in finished or not training:
            continue
        if any(step.planned.calibrated for step in steps[: training[-1]]):
            what = "pruning by calibration and then training works in one process only"
            raise UserError(
                Problem(f"components.{name}", f"{what}; prune by magnitude, or leave `accelerate launch` out")
            )
        context = TrainingContext(plan.modified_source, training_folder(partial_folder(out), name))
        component = apply_pruning_steps(plan, name, plan.modified_source.reader(name), {}, context)
        component.read(next(iter(component.spec.tensors)))  # trains


def _finished_components(partial: Path) -> frozenset[str]:
    """Return the components that an earlier run finished.

    While this process trains, rank 0 finishes no component that trains, so the answer does not change.
    """
    try:
        return frozenset(json.loads((partial / STATE_NAME).read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError):
        return frozenset()  # there is no such run, or it has not started again yet
