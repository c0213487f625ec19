"""The contract of a step: what a recipe can ask for, planned on specs alone, applied tensor by tensor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from sdcompress.spec import ComponentSpec

if TYPE_CHECKING:
    import torch


class Stage(IntEnum):
    """The order in which steps of a component must stand in a recipe."""

    FUSE = 1
    PRUNE = 2
    RECOVER = 3
    CAST = 4
    QUANTIZE = 5
    EXPORT = 6


@dataclass(frozen=True)
class LayerOutcome:
    """What a step does with one layer: a format's label, or `None` and the reason it is left alone."""

    layer: str
    kind: str
    parameters: int
    format: str | None
    reason: str = ""


@dataclass(frozen=True)
class Planned:
    """A step folded into a spec: the component afterwards, and what becomes of each layer it looked at."""

    spec: ComponentSpec
    layers: tuple[LayerOutcome, ...] = ()
    notes: tuple[str, ...] = ()
    working_bytes: int = 0  # the most a single tensor's processing holds at once
    requires: frozenset[str] = frozenset()  # packages that must be importable to apply it


@dataclass
class Record:
    """What applying the steps found out, layer by layer; it ends up in the manifest."""

    layers: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Component:
    """A component being worked on: its spec, and a reader that makes each of its tensors when it is asked for."""

    spec: ComponentSpec
    read: Callable[[str], torch.Tensor]


class Step(BaseModel):
    """One entry of a component's list in a recipe; its fields are its YAML parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str]
    stage: ClassVar[Stage]

    @abstractmethod
    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        """The component after this step. Raises UserError with every problem, each beginning with a field's name."""

    @abstractmethod
    def apply(self, part: Component, planned: Planned, record: Record) -> Component:
        """The component whose tensors are the planned ones, computed when they are read."""
