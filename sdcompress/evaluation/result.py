"""What an evaluation hands over to whoever reports it: facts, settings, and all raw samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdcompress.evaluation.metrics.scorer import Scorer
from sdcompress.evaluation.samples import Drawing, Record, Side
from sdcompress.evaluation.stopping import Stopping
from sdcompress.files.manifest import is_artifact, read_manifest
from sdcompress.sources.source import Source


@dataclass(frozen=True)
class ComponentFacts:
    """What the files of one component say."""

    parameters: int
    weights_bytes: int
    bits_per_weight: float | None


@dataclass(frozen=True)
class ModelFacts:
    """What the files of a pipeline say: parameters and bytes, whole and by component."""

    name: str
    pipeline_class: str
    parameters: int
    size_bytes: int | None
    weights_bytes: int
    components: Mapping[str, ComponentFacts]
    layers: Sequence[Mapping[str, Any]]  # what became of each layer; none for a pipeline that is no artifact

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class StepSwap:
    """The original with one component as it is after one more step of its recipe."""

    step: str  # the kind of the step
    place: int  # of the step in the component's list, counted from 1
    variant: str  # the label of its pictures in the log and in `images/`
    weights_bytes: int
    saved_bytes: int  # by this step alone
    not_measured: str | None = None  # why not
    note: str | None = None


@dataclass(frozen=True)
class ComponentSwap:
    """The original with one component of the compressed pipeline, and the steps that led to that component."""

    name: str
    steps: Sequence[Any]  # of the recipe, as it writes them
    weights_bytes: int
    saved_bytes: int
    after_steps: tuple[StepSwap, ...] = ()  # the last is the component itself
    steps_not_measured: str | None = None  # why not

    @property
    def variant(self) -> str:
        """The label of its pictures in the log and in `images/`."""
        return f"swap-{self.name}"

    def to_json(self) -> dict[str, Any]:
        """Return the swap as a report's JSON has it."""
        return {
            "kind": "component",
            "name": self.name,
            "variant": self.variant,
            "steps": list(self.steps),
            "weights_bytes": self.weights_bytes,
            "saved_bytes": self.saved_bytes,
            "ladder": [asdict(step) for step in self.after_steps],
            "ladder_not_measured": self.steps_not_measured,
        }


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation of a compressed pipeline against its original.

    Args:
        folder: where the pictures, the sample log and the logs of processes are.
        command: the command line that asked for it.
        environment: the machine and the versions of libraries.
        settings: what was asked for, as a report keeps it, and what each pipeline was opened with.
        scorer: the CLIP model; None where no scorer was used.
        models: what the files of both pipelines say.
        drawings: every pair that was drawn.
        records: the records of the sample log that belong to these drawings, oldest first.
        floor_not_measured: source of noise -> why it was not measured.
        swaps: the components that attribution swapped; None without attribution.
        gates: thresholds to check, such as `psnr_db>=30`.
        made_with: the recipe that the compressed pipeline was made with, and its losses while recovering.
        stopping: after how many prompts it stopped and why, and which level its intervals need.
    """

    folder: Path
    command: str | None
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    scorer: Scorer | None
    models: Mapping[Side, ModelFacts]
    drawings: tuple[Drawing, ...]
    records: tuple[Record, ...]
    floor_not_measured: Mapping[str, str]
    swaps: tuple[ComponentSwap, ...] | None
    gates: tuple[str, ...]
    made_with: Mapping[str, Any]
    stopping: Stopping


def describe_model(source: Source) -> ModelFacts:
    """Return what the files of a pipeline say."""
    return ModelFacts(
        name=source.name,
        pipeline_class=source.pipeline_class,
        parameters=source.parameters,
        size_bytes=source.size_bytes,
        weights_bytes=source.weights_bytes,
        components={
            name: ComponentFacts(spec.parameters, spec.weights_bytes, spec.bits_per_weight)
            for name, spec in source.components.items()
        },
        layers=_layers_of(source),
    )


def _layers_of(source: Source) -> list[dict[str, Any]]:
    if source.path is None or not is_artifact(source.path):
        return []
    return [
        {"component": component, "layer": layer, **facts.to_json()}
        for component, entry in read_manifest(source.path).components.items()
        for layer, facts in entry.layers.items()
    ]
