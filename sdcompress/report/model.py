"""A report, typed: each attribute is a key of report.json. None means that something was not measured."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from sdcompress.evaluation.samples import Side
from sdcompress.files.manifest import LayerEntry
from sdcompress.report.quality_model import (
    Change,
    ComponentMetrics,
    Metric,
    NoiseFloor,
    Number,
    Part,
    Sample,
    SetMetric,
    Similarity,
    SwapFigures,
    Verdict,
)

SCHEMA_VERSION = 1


class ComponentFigures(Part):
    """What one component of a pipeline costs."""

    parameters: int | None = None
    weights_bytes: int | None = None
    bits_per_weight: float | None = None
    resident_weights_bytes: int | None = None
    macs: int | None = None  # multiply-accumulates per picture
    latency_s: float | None = None  # median per picture


class LayerFacts(LayerEntry):
    """What became of one layer, as the artifact's manifest says, and its place."""

    component: str
    layer: str


class PipelineFigures(Part):
    """What one pipeline costs and scores: medians of times, means of scores, counts of pictures."""

    name: str
    pipeline_class: str
    parameters: int
    size_bytes: int | None
    weights_bytes: int
    bits_per_weight: float | None
    resident_weights_bytes: int | None
    peak_memory_bytes: int | None
    peak_memory_over_imports_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    load_s: float | None
    latency_s: float | None
    latency_s_quantiles: dict[str, float] | None = None
    images_per_minute: float | None = None
    energy_j: float | None = None
    macs: int | None = None
    clip_score: float | None
    pictures: int
    blocked: int
    flat: int
    not_finite: int
    components: dict[str, ComponentFigures]
    layers: list[LayerFacts] = Field([])


class Changes(Part):
    """The change of each figure of a pipeline."""

    parameters: Change = Change()
    size_bytes: Change = Change()
    weights_bytes: Change = Change()
    bits_per_weight: Change = Change()
    resident_weights_bytes: Change = Change()
    peak_memory_bytes: Change = Change()
    peak_memory_over_imports_bytes: Change = Change()
    peak_device_memory_bytes: Change = Change()
    load_s: Change = Change()
    latency_s: Change = Change()
    images_per_minute: Change = Change()
    energy_j: Change = Change()
    macs: Change = Change()
    clip_score: Change
    components: dict[str, dict[str, Change]] = Field({})


class GateResult(Part):
    """A gate, what was measured, and whether it passed. A figure that was not measured fails."""

    gate: str
    value: Number | None
    passed: bool
    infinite: bool = False


class Environment(Part):
    """The machine and the libraries; device, dtype and threads are of each side's process."""

    python: str
    platform: str
    cpu: str
    cores: int | None
    memory_bytes: int | None = None
    versions: dict[str, str]
    device: dict[str, str | None]
    device_name: dict[str, str | None]
    dtype: dict[str, str | None]
    threads: dict[str, int | None]


class Stopping(Part):
    """When drawing stopped: the prompts at each look, those that were drawn, why no more, and the intervals' level."""

    looks: list[int]
    prompts: int
    reason: str
    interval_level: float


class Settings(Part):
    """What the evaluation was asked for, defaults filled in."""

    prompt_set: str
    num_inference_steps: int | None
    guidance_scale: Number | None
    strength: float | None = None
    height: int | None = None
    width: int | None = None
    input_pictures: dict[str, Any] = Field({})
    stopping: Stopping | None = None

    def scalars(self) -> dict[str, Any]:
        """Return every setting that is a single value."""
        found = self.model_dump(mode="json", exclude_unset=True)
        return {name: value for name, value in found.items() if not isinstance(value, dict | list)}


class Scorer(Part):
    """The CLIP model that scored the pictures."""

    name: str
    path: str | None = None


class ReportData(Part):
    """All that an evaluation found."""

    schema_version: int
    command: str | None = None
    environment: Environment
    settings: Settings
    scorer: Scorer | None = None
    original: PipelineFigures
    compressed: PipelineFigures
    change: Changes
    similarity: Similarity
    metrics: dict[str, Metric] = Field({})
    set_metrics: dict[str, SetMetric] = Field({})
    not_measured: dict[str, str] = Field({})
    component_metrics: dict[str, ComponentMetrics] | None = None
    noise_floor: NoiseFloor | None = None
    verdicts: dict[str, Verdict] = Field({})
    attribution: list[SwapFigures] | None = None
    gates: list[GateResult] = Field([])
    samples: list[Sample]
    processes: dict[str, list[dict[str, Any]]] = Field({})
    recipe: dict[str, Any] | None = None  # that an artifact was made with
    recovery: dict[str, Any] | None = None  # losses while its weights were recovered

    def side(self, side: Side) -> PipelineFigures:
        """Return the figures of one pipeline."""
        return self.original if side == "original" else self.compressed

    @property
    def title(self) -> str:
        """What was compared; of paths the last two names."""
        return f"{_short(self.compressed.name)} against {_short(self.original.name)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-safe values: what report.json holds."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _short(name: str) -> str:
    parts = name.replace("\\", "/").rstrip("/").split("/")
    return "/".join(parts[-2:])
