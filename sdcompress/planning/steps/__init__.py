"""The contract of a step: an entry of a recipe, planned on specs alone and applied tensor by tensor."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from sdcompress.backends.component import Component, MeasuringContext
from sdcompress.errors import Problem
from sdcompress.files.manifest import LayerStatus
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    from sdcompress.sources.source import Source


def parse_share(value: Any) -> Any:
    """Return a text with a percent sign as a fraction, and anything else as it is, for pydantic to judge."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value


Share = Annotated[float, BeforeValidator(parse_share), Field(gt=0, lt=1)]  # in a recipe: 0.3 or 30%


class Stage(IntEnum):
    """The order in which the steps of a component must stand in a recipe.

    What the steps up to FUSE make is the original to all later steps: what they measure, calibrate and learn on.
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
    """What a step does with one layer.

    Args:
        kind: kind of layer, as `layers_of` tells it, or of the module that `prune` works on.
        parameters: weights of the layer; where it is pruned, the weights that go.
        format: label of its format, where it is quantized.
        reason: why it is kept, or how much of it is pruned.
        rounding: how its codes are chosen.
    """

    layer: str
    kind: str
    parameters: int
    status: LayerStatus
    format: str | None = None
    reason: str = ""
    rounding: str = "nearest"


@dataclass(frozen=True)
class Planned:
    """What a step makes of a component.

    Args:
        spec: the component afterwards.
        layers: what becomes of each layer that the step looked at.
        working_bytes: the most memory that it holds while it works on one tensor.
        requires: packages that must be importable to apply it.
        calibrated: layers of whose inputs it needs statistics.
        target: the backend that will package the component.
        trains: whether applying it trains.
        scratch_bytes: disk space that it takes until the artifact is whole.
        reads: files that it takes something from, besides the pipeline's own.
    """

    spec: ComponentSpec
    layers: tuple[LayerOutcome, ...] = ()
    notes: tuple[str, ...] = ()
    working_bytes: int = 0
    requires: frozenset[str] = frozenset()
    calibrated: tuple[str, ...] = ()
    target: str = "torch"
    trains: bool = False
    scratch_bytes: int = 0
    reads: tuple[Path, ...] = ()


class Step(BaseModel):
    """One entry of a component's list in a recipe. Its fields are its YAML parameters.

    Attributes:
        kind: its name in a recipe.
        follows: kind of a step that must stand somewhere before it.
        changeable: fields that may have other values when a run is resumed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str]
    stage: ClassVar[Stage]
    follows: ClassVar[str | None] = None
    changeable: ClassVar[frozenset[str]] = frozenset()

    @property
    def measures(self) -> bool:
        """Whether `measured` reads weights."""
        return False

    def measured(self, context: MeasuringContext) -> Step:
        """Return the step with what it leaves to a measurement filled in.

        Raises:
            UserError: it cannot be measured here.
        """
        return self

    @abstractmethod
    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        """Return what the step makes of the component.

        Raises:
            UserError: with every problem; the fields are the step's own.
        """

    def modified(self, source: Source, component: str) -> Source:
        """Return the pipeline as a step up to FUSE leaves it, with tensors that are computed when they are read."""
        return source

    def pipeline_problems(self, source: Source) -> list[Problem]:
        """Return what keeps the step from working in this pipeline, whatever its component is."""
        return []

    @abstractmethod
    def apply(self, component: Component, planned: Planned) -> Component:
        """Return the component after the step. What the step finds out goes to `component.results`."""


class StepWithFiles(Step):
    """A step that names files. Their paths are relative to the recipe's folder, or to the current folder."""

    _folder: Path = PrivateAttr(default=Path())

    def model_post_init(self, context: Any) -> None:
        """Remember the recipe's folder, so that relative paths in it resolve."""
        self._folder = Path((context or {}).get("folder", ""))
