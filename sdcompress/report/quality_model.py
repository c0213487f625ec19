"""The typed figures of quality: pairs of pictures, how alike they are, and verdicts on that.

JSON has no infinity, so the PSNR of identical pictures is None beside `identical`, and None as the mean, median or
minimum of PSNR where `identical` counts every pair means infinite. None elsewhere means that it was not measured.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sdcompress.evaluation.samples import Side

Number = int | float
Interval = tuple[float, float]  # its lower and upper bound


class Part(BaseModel):
    """A part of a report. Keys that this version does not know are kept, so that they are written again."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)


class SampleSide(Part):
    """One picture of one pipeline: what it took to draw, and its CLIP score."""

    latency_s: list[float]  # of each repeat
    component_latency_s: list[dict[str, float]]
    peak_memory_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    energy_j: list[float | None] = []
    clip_score: float | None
    blocked: bool  # by the safety checker
    flat: bool
    not_finite: bool
    vae_upcast: str | None = None  # the dtype that decoded the picture in the place of float16
    height: int
    width: int
    latents_sha256: str | None = None
    picture: str  # relative to the report's folder


class Pair(Part):
    """A picture beside the original's of the same prompt and seed. PSNR and SSIM are None where they differ in size."""

    index: int
    prompt: str
    psnr_db: float | None
    identical: bool
    ssim: float | None
    metrics: dict[str, float | None] = {}

    @property
    def drift(self) -> float | None:
        """CLIP score minus the original's; None where either picture is blocked or was not scored."""
        raise NotImplementedError


class Sample(Pair):
    """One drawing: a prompt and a seed through both pipelines."""

    seed: int
    original: SampleSide
    compressed: SampleSide

    def side(self, side: Side) -> SampleSide:
        """Return the picture of one pipeline."""
        return self.original if side == "original" else self.compressed

    @property
    def blocked(self) -> bool:
        """Whether a safety checker blocked either picture: a black square says nothing about quality."""
        return self.original.blocked or self.compressed.blocked

    @property
    def drift(self) -> float | None:
        scores = self.original.clip_score, self.compressed.clip_score
        return None if self.blocked or None in scores else scores[1] - scores[0]  # type: ignore[operator]


class Change(Part):
    """Compressed against original: the difference, the ratio to the original, and the interval of either."""

    difference: Number | None = None
    ratio: float | None = None
    ratio_interval_95: Interval | None = None
    interval_95: Interval | None = None  # of the paired difference
    pairs: int = 0  # that the interval is over


class Estimate(Part):
    """A mean over pictures with its 95 % interval over prompts; the median and the least value where they are told."""

    mean: float | None = None
    interval_95: Interval | None = None
    median: float | None = None
    min: float | None = None


class Difference(Part):
    """A mean difference over pictures with its 95 % interval over prompts."""

    difference: float | None = None
    interval_95: Interval | None = None


class Similarity(Part):
    """PSNR and SSIM of pictures with the same prompt, seed and initial latents; blocked pairs are left out."""

    pairs: int
    pairs_blocked: int = 0
    pairs_of_unlike_size: int = 0
    identical: int
    identical_latents: bool | None = None  # None: a pipeline does not say
    psnr_db: Estimate  # its mean is over the pairs that differ
    ssim: Estimate

    @property
    def all_identical(self) -> bool:
        """Whether every pair is identical to the pixel, so that PSNR is infinite."""
        return bool(self.pairs) and self.identical == self.pairs


class Metric(Estimate):
    """A further metric of pairs of pictures."""

    unit: str | None = None
    higher_is_better: bool = True
    worst_index: int | None = None


class SetFloor(Part):
    """A distance of sets over the pictures that were drawn with another seed too."""

    pictures: int
    compressed: float | None
    seed: float | None  # of the original against itself


class SetMetric(Part):
    """A distance between the two sets of pictures."""

    unit: str | None = None
    higher_is_better: bool = False
    value: float
    pictures: int
    enough_pictures: int | None = None
    reliable: bool = True
    floor: SetFloor | None = None


class Curve(Part):
    """A figure of a component alone, over inputs or timesteps."""

    mean: float | None = None
    min: float | None = None
    timesteps: list[float] = []
    values: list[float | None] = []


class ComponentMetrics(Part):
    """What a component computes differently when both get the same input."""

    cosine: Curve | None = None
    noise_sqnr_db: Curve | None = None
    decode_psnr_db: Curve | None = None
    agreement: float | None = None  # share of pictures that a safety checker judges alike
    pictures: int | None = None
    flagged_original: int | None = None
    flagged_compressed: int | None = None


class VariantSample(Pair):
    """One picture of the original redrawn, or with a component swapped, beside the original's own."""

    seed: int | None = None
    clip_score_difference: float | None
    latency_s: float | None = None
    original_latency_s: float | None = None

    @property
    def drift(self) -> float | None:
        return self.clip_score_difference


class Verdict(Part):
    """Whether an effect is within noise, worse or better, and why."""

    verdict: str
    effect: float | None = None
    interval_95: Interval | None = None
    floor: float | None = None
    floor_source: str | None = None
    prompts: int | None = None
    reason: str = ""


class Variant(Part):
    """How the pictures of a variant of the original differ from the original's; of a swap its time and verdicts too."""

    pictures: int = 0
    identical: int = 0
    psnr_db: Estimate = Estimate()
    clip_score: Difference = Difference()
    ssim: Estimate = Estimate()
    latency_s: Change = Change()
    verdict: str | None = None
    verdicts: dict[str, Verdict] = {}

    def metric(self, name: str) -> Estimate | None:
        """Return the estimate of a metric of pairs, such as `ssim` or `lpips`; None where it was not measured."""
        found = getattr(self, name, None)
        return None if found is None else Estimate.model_validate(found)

    @property
    def all_identical(self) -> bool:
        """Whether every picture is the original's to the pixel, so that PSNR is infinite."""
        return bool(self.pictures) and self.identical == self.pictures


class FloorSource(Variant):
    """The original redrawn in one way: with another seed, in bfloat16, or in batches."""

    label: str
    samples: list[VariantSample] = []


class NoiseFloor(Part):
    """How far the original differs from itself, by source of noise."""

    label: str = ""
    sources: dict[str, FloorSource] = {}
    not_measured: dict[str, str] = {}


class StepGain(Part):
    """What one step alone changed, against the step before."""

    clip_score: Difference = Difference()
    psnr_db: Difference = Difference()


class StepFigures(Variant):
    """A component after one more step of its recipe, in the original pipeline."""

    step: str
    place: int = 1
    variant: str | None = None
    weights_bytes: int | None = None
    saved_bytes: int | None = None  # by this step alone
    not_measured: str | None = None  # why not
    note: str | None = None
    together_with: list[str] = Field([], alias="with")  # steps before it whose cost its own holds
    adds: StepGain | None = None


class SwapFigures(Variant):
    """The original with one component of the compressed pipeline, and that component step by step."""

    kind: str = "component"
    name: str
    variant: str | None = None
    steps: list[Any] = []
    weights_bytes: int | None = None
    saved_bytes: int | None = None
    ladder: list[StepFigures] = []
    ladder_not_measured: str | None = None
