"""A component that is being worked on, and what a step that trains works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

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
        calibrating: called with component, finished runs and total runs while pictures are drawn.
        training: called with component, what is done, what there is to do, and a line about it.
    """

    source: Source
    folder: Path
    calibrating: Callable[[str, int, int], None]
    training: Callable[[str, float, float, str], None]


@dataclass(frozen=True)
class Component:
    """A component that is being worked on.

    Args:
        spec: its config and the specs of its tensors.
        read: computes one of its tensors, by name, each time it is called.
        statistics: layer -> statistics of the layer's inputs, for the layers that a step's plan asked for.
        training: what a step that trains works with; None where no step trains.
    """

    spec: ComponentSpec
    read: Callable[[str], torch.Tensor]
    statistics: Mapping[str, LayerStatistics] = field(default_factory=dict)
    training: TrainingContext | None = None

    def becomes(self, spec: ComponentSpec, read: Callable[[str], torch.Tensor]) -> Component:
        """Return the component with another spec and reader."""
        return replace(self, spec=spec, read=read)
