"""The source as a plan's pruning leaves it: what everything after is calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sdcompress.plan import Plan, PlannedStep
from sdcompress.source import Source
from sdcompress.steps import Component, Record, Stage

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.statistics import LayerStatistics


def pruning_steps(steps: Iterable[PlannedStep]) -> tuple[PlannedStep, ...]:
    """Those that settle what weights there are to cast, quantize and export; they look at the original."""
    return tuple(step for step in steps if step.step.stage <= Stage.RECOVER)


def later_steps(steps: Iterable[PlannedStep]) -> tuple[PlannedStep, ...]:
    """Those that take the pruned weights as given."""
    return tuple(step for step in steps if step.step.stage > Stage.RECOVER)


def pruned_source(
    plan: Plan,
    read: Callable[[str], Callable[[str], torch.Tensor]],
    statistics: Mapping[str, Mapping[str, LayerStatistics]],
) -> Source:
    """The plan's source with its pruned components; their tensors are computed when they are read.

    read: component -> reader of its original tensors; statistics: component -> those of the original's layers.
    """
    source = plan.source
    components, readers = dict(source.components), {}
    for name in source.components:
        steps = pruning_steps(plan.steps_of(name))
        if steps:
            part = Component(source.components[name], read(name), statistics.get(name, {}))
            for step in steps:
                part = step.step.apply(part, step.planned, Record())
            components[name], readers[name] = part.spec, part.read
    return replace(source, components=components, readers=readers)
