"""The contract of a step: what a recipe can ask for, planned on specs alone, applied tensor by tensor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, PrivateAttr

from sdcompress.backends.component import Component
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    from sdcompress.calibration.settings import Calibration
    from sdcompress.sources.source import Source


class Stage(IntEnum):
    """The order in which steps of a component must stand in a recipe.

    Those up to FUSE settle what the original is for all others: what they measure, calibrate and learn on.
    """

    REPLACE = 0
    FUSE = 1
    PRUNE = 2
    RECOVER = 3
    CAST = 4
    SMOOTH = 5
    QUANTIZE = 6
    EXPORT = 7


@dataclass(frozen=True)
class LayerOutcome:
    """What a step does with one layer: a format's label, or `None` and the reason it is left alone."""

    layer: str
    kind: str
    parameters: int
    format: str | None
    reason: str = ""
    method: str = ""  # how its codes are chosen


@dataclass(frozen=True)
class Planned:
    """A step folded into a spec: the component afterwards, and what becomes of each layer it looked at."""

    spec: ComponentSpec
    layers: tuple[LayerOutcome, ...] = ()
    notes: tuple[str, ...] = ()
    working_bytes: int = 0  # the most a single tensor's processing holds at once
    requires: frozenset[str] = frozenset()  # packages that must be importable to apply it
    calibrated: tuple[str, ...] = ()  # layers of whose inputs applying it needs statistics
    target: str = "torch"  # the backend that will package it
    trains: bool = False  # applying it trains, in the component's training
    scratch_bytes: int = 0  # of disk that applying it takes until the artifact is whole
    reads: tuple[Path, ...] = ()  # files besides the pipeline's own that it takes something from


@dataclass
class Record:
    """What applying the steps found out, layer by layer and of the whole component; it ends up in the manifest."""

    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    sparsity: dict[str, float] = field(default_factory=dict)  # layer -> share of its weights that are zero
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Where a step finds the original's weights, if it has to measure something on them to know what to do."""

    source: Source
    component: str
    calibration: Calibration
    advance: Callable[[str, int, int], None]  # hears component, runs done and how many there are


class Step(BaseModel):
    """One entry of a component's list in a recipe; its fields are its YAML parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str]
    stage: ClassVar[Stage]
    follows: ClassVar[str | None] = None  # a step that must stand somewhere before it
    changeable: ClassVar[frozenset[str]] = frozenset()  # fields that a resumed run may have other values of

    @property
    def measures(self) -> bool:
        """Whether `measured` looks at weights."""
        return False

    def measured(self, origin: Origin) -> Step:
        """The step that this one turns out to be once the original was looked at; most say all themselves."""
        return self

    @abstractmethod
    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        """The component after this step. Raises UserError with every problem, each beginning with a field's name."""

    def prepared(self, source: Source, component: str) -> Source:
        """The pipeline as a step up to FUSE makes it, tensors computed when they are read; `apply` then keeps them."""
        return source

    def problems_with(self, source: Source) -> list[str]:
        """What in the pipeline stands in the way of this step, each beginning with a field's name."""
        return []

    @abstractmethod
    def apply(self, part: Component, planned: Planned, record: Record) -> Component:
        """The component whose tensors are the planned ones, computed when they are read."""


class LocatedStep(Step):
    """A step that names files; their paths are relative to the recipe's folder, or to where the process runs."""

    _folder: Path = PrivateAttr(default=Path())

    def model_post_init(self, context: Any) -> None:
        """Hears, from who parses a recipe, in which folder it lies."""
        self._folder = Path((context or {}).get("folder", ""))
