"""The source as a plan's pruning leaves it: what everything after is calibrated on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sdcompress.backends.component import Component
from sdcompress.planning.plan import Plan, PlannedStep
from sdcompress.planning.steps import Stage
from sdcompress.sources.source import Source

if TYPE_CHECKING:
    pass


def pruning_steps(steps: Iterable[PlannedStep]) -> tuple[PlannedStep, ...]:
    """Those that settle what weights there are to cast, quantize and export; they look at the original."""
    return tuple(step for step in steps if step.step.stage <= Stage.RECOVER)


def later_steps(steps: Iterable[PlannedStep]) -> tuple[PlannedStep, ...]:
    """Those that take the pruned weights as given."""
    return tuple(step for step in steps if step.step.stage > Stage.RECOVER)


def pruned_source(plan: Plan, parts: Mapping[str, Component]) -> Source:
    """The plan's prepared source with those of `parts` that it prunes; their tensors are computed when they are read.

    parts: component -> the component with its pruning steps behind it.
    """
    source = plan.prepared
    changed = {name: part for name, part in parts.items() if pruning_steps(plan.steps_of(name))}
    return replace(
        source,
        components={**source.components, **{name: part.spec for name, part in changed.items()}},
        readers={**source.readers, **{name: part.read for name, part in changed.items()}},
    )
