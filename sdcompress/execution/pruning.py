"""The pipeline after a plan's pruning steps: what all later steps are calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sdcompress.backends.component import Component, TrainingContext
from sdcompress.planning.plan import Plan, PlannedStep, layers_with_statistics
from sdcompress.planning.steps import Stage
from sdcompress.progress import Listener, silent
from sdcompress.sources.source import Source

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.statistics import LayerStatistics


def pruning_steps(steps: Iterable[PlannedStep]) -> tuple[PlannedStep, ...]:
    """Return the steps up to RECOVER, which decide what weights there are. They are calibrated on the original."""
    return tuple(step for step in steps if step.step.stage <= Stage.RECOVER)


def later_steps(steps: Iterable[PlannedStep]) -> tuple[PlannedStep, ...]:
    """Return the steps after RECOVER, which take the pruned weights as given."""
    return tuple(step for step in steps if step.step.stage > Stage.RECOVER)


def apply_pruning_steps(
    plan: Plan,
    name: str,
    read: Callable[[str], torch.Tensor],
    statistics: Mapping[str, LayerStatistics],
    training: TrainingContext,
) -> Component:
    """Return a component after its pruning steps. It is pruned and trained when its tensors are read.

    Args:
        read: returns a tensor of the plan's modified source.
        statistics: layer -> statistics of its input in the original.
    """
    component = Component(plan.modified_source.components[name], read, statistics, training)
    for step in pruning_steps(plan.steps_of(name)):
        component = step.step.apply(component, step.planned)
    return component


def pruned_source(plan: Plan, components: Mapping[str, Component]) -> Source:
    """Return the plan's modified source with those components in it that the plan prunes.

    Args:
        components: name -> the component after its pruning steps.
    """
    source = plan.modified_source
    changed = {name: each for name, each in components.items() if pruning_steps(plan.steps_of(name))}
    return replace(
        source,
        components={**source.components, **{name: each.spec for name, each in changed.items()}},
        readers={**source.readers, **{name: each.read for name, each in changed.items()}},
    )


def gather_input_statistics(
    plan: Plan, source: Source, steps: Iterable[PlannedStep], listener: Listener = silent
) -> Mapping[str, Mapping[str, LayerStatistics]]:
    """Return component -> layer -> statistics of its input, for the layers that the steps are calibrated on.

    Args:
        source: the pipeline that draws the pictures. Its statistics are cached.
    """
    wanted = layers_with_statistics(steps)
    if not wanted:
        return {}
    from sdcompress.backends.torch.input_statistics import load_or_gather

    return load_or_gather(source, wanted, plan.recipe.calibration, listener)
