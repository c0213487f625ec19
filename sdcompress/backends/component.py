"""A component while the steps of a recipe are applied to it, and what they need and find out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.calibration.settings import Calibration
from sdcompress.progress import Listener, silent
from sdcompress.quant.statistics import LayerStatistics
from sdcompress.sources.source import Source
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TrainingContext:
    """What a step that trains works with.

    Args:
        source: the original pipeline.
        folder: where checkpoints are kept. Its content outlives a killed run.
        listener: told of the runs that draw pictures and of the training.
    """

    source: Source
    folder: Path
    listener: Listener = silent


@dataclass(frozen=True)
class MeasuringContext:
    """What a step works with that measures the original before it is planned.

    Args:
        source: the pipeline, with weights.
        component: name of the component that the step is for.
        calibration: what pictures are drawn.
        listener: told of the runs that are measured.
    """

    source: Source
    component: str
    calibration: Calibration
    listener: Listener = silent


@dataclass
class StepResults:
    """What applying the steps found out. The manifest keeps it.

    Steps work when tensors are read, so all results are there once every tensor was read.

    Args:
        layers: layer -> fields of its `LayerEntry`, for the quantized layers.
        sparsity: layer -> share of its weights that are zero.
        facts: fields of the `ComponentEntry`, such as `recovery`.
    """

    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    sparsity: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Component:
    """A component that steps are applied to. Its tensors are computed when they are read.

    Args:
        spec: its config and the specs of its tensors.
        read: returns one of its tensors, by name; computes it each time.
        statistics: layer -> statistics of the layer's input, for the layers that a step's plan asked for.
        training: what a step that trains works with; None where no step trains.
        results: what the steps so far found out; shared by all states of the component.
    """

    spec: ComponentSpec
    read: Callable[[str], torch.Tensor]
    statistics: Mapping[str, LayerStatistics] = field(default_factory=dict)
    training: TrainingContext | None = None
    results: StepResults = field(default_factory=StepResults)

    def becomes(self, spec: ComponentSpec, read: Callable[[str], torch.Tensor]) -> Component:
        """Return the component with another spec and reader."""
        return replace(self, spec=spec, read=read)
