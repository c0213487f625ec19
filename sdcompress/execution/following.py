"""Helping another process train: what the processes do that `accelerate launch` starts beside the first one."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sdcompress.backends.component import Component, TrainingContext
from sdcompress.errors import UserError
from sdcompress.execution.execute import TRAINING_FOLDER
from sdcompress.execution.run_state import STATE_NAME
from sdcompress.files.artifact import partial_folder
from sdcompress.planning.plan import Plan
from sdcompress.planning.steps import Record


def is_follower() -> bool:
    """Whether another process of this launch writes the artifact."""
    return int(os.environ.get("RANK", "0")) > 0


def follow(plan: Plan, out: Path, *, resume: bool) -> None:
    """Takes part in every training run of the plan that the first process has to make, and writes nothing."""
    finished = _finished(partial_folder(out)) if resume else frozenset()
    for name, spec in plan.prepared.components.items():
        steps = plan.steps_of(name)
        training = [index for index, step in enumerate(steps) if step.planned.trains]
        if name in finished or not training:
            continue
        if any(step.planned.calibrated for step in steps[: training[-1]]):
            raise UserError(
                f"components.{name}: what is pruned by calibration can be recovered by one process only; prune by "
                f"magnitude, or leave `accelerate launch` out"
            )
        folder = partial_folder(out) / TRAINING_FOLDER / name
        context = TrainingContext(plan.prepared, folder, lambda *_: None, lambda *_: None)
        part = Component(spec, plan.prepared.reader(name), training=context)
        for step in steps[: training[-1] + 1]:
            part = step.step.apply(part, step.planned, Record())
        part.read(next(iter(part.spec.tensors)))  # which trains


def _finished(partial: Path) -> frozenset[str]:
    """The components an earlier run finished: none that trains joins them while this process has not trained it."""
    try:
        return frozenset(json.loads((partial / STATE_NAME).read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError):
        return frozenset()  # no such run, or not begun again yet
