"""What an evaluation draws and measures, typed: drawings, and the records of the sample log (`samples.jsonl`).

Each line of the log is one record as JSON, told apart by its `kind`. Keys that this version does not know are kept.
JSON has no infinity: the PSNR of identical pictures is None beside `identical`. None elsewhere means not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from sdcompress.calibration.input_pictures import PictureRequest

Side = Literal["original", "compressed"]
SIDES: tuple[Side, Side] = ("original", "compressed")


class Drawing(BaseModel):
    """One picture to draw with both pipelines. No two drawings of an evaluation share a seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    prompt: str
    seed: int  # of the initial latents
    inputs: PictureRequest | None = None  # the pictures it is drawn from, for pipelines that need some

    def to_json(self) -> dict[str, Any]:
        """Return the drawing as JSON values; without `inputs` where it has none."""
        return self.model_dump(mode="json", exclude_none=True)


class Entry(BaseModel):
    """A typed JSON object of the log."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def to_json(self) -> dict[str, Any]:
        """Return the values that were given, as JSON values, and `kind` if this is a record."""
        kind = {"kind": self.kind} if isinstance(self, Record) else {}
        return {**kind, **self.model_dump(mode="json", exclude_unset=True)}


class OpenedPipeline(Entry):
    """What a process measured while it opened a pipeline."""

    load_s: float
    resident_after_imports_bytes: int
    resident_after_open_bytes: int | None = None
    peak_memory_bytes: int | None
    resident_weights_bytes: dict[str, int]  # component -> bytes; torch components alone
    pipeline_class: str = ""
    device: str
    device_name: str | None
    dtype: str
    threads: int
    energy_source: str | None = None
    defaults: dict[str, Any]  # the pipeline's own, such as num_inference_steps


class DrawnPicture(Entry):
    """What a process measured while it drew a picture."""

    latency_s: float
    energy_j: float | None = None
    component_latency_s: dict[str, float]
    latents_sha256: str | None  # of all noise that was drawn, in float32
    vae_upcast: str | None = None  # the dtype that decoded the picture in the place of float16
    blocked: bool  # by the safety checker
    flat: bool
    not_finite: bool
    height: int
    width: int
    peak_memory_bytes: int | None  # of the process so far
    peak_device_memory_bytes: int | None


class PairScores(Entry):
    """How a picture compares with the original's of the same prompt. None: the two differ in size."""

    clip_score: dict[Side, float | None]
    identical: bool
    psnr_db: float | None
    ssim: float | None
    metrics: dict[str, float | None] = {}


class SetScores(Entry):
    """How far a set of pictures lies from the original's."""

    cmmd: float | None = None
    fid: float | None = None


class ProcessRecord(OpenedPipeline):
    """A process that opened one of the two pipelines."""

    kind: Literal["process"] = "process"
    side: Side
    warm_up_latency_s: float | None = None


class PictureRecord(DrawnPicture):
    """A picture of one of the two pipelines."""

    kind: Literal["picture"] = "picture"
    side: Side
    index: int
    repeat: int  # counted from 0; repeats measure latency alone


class VariantRecord(DrawnPicture):
    """A picture of a variant of the original: redrawn for the noise floor, or with a component swapped."""

    kind: Literal["variant"] = "variant"
    variant: str
    index: int
    seed: int | None = None  # None: the drawing's
    original_latency_s: float | None = None  # of the original's picture that was drawn in turn with it


class ScoringRecord(Entry):
    """A process that scored pictures, and why it could not measure some metrics."""

    kind: Literal["judge"] = "judge"
    scorer: str | None
    not_measured: dict[str, str]


class ScoreRecord(PairScores):
    """The scores of the compressed pipeline's picture."""

    kind: Literal["score"] = "score"
    index: int
    scorer: str | None


class VariantScoreRecord(PairScores):
    """The scores of a variant's picture."""

    kind: Literal["variant_score"] = "variant_score"
    variant: str
    index: int
    scorer: str | None


class SetScoreRecord(SetScores):
    """The distances of the pictures with a label from the original's."""

    kind: Literal["set_score"] = "set_score"
    label: str
    over: Literal["all", "floor"]  # all drawings, or those that were drawn with another seed too
    scorer: str | None
    count: int  # pictures


class ComponentsRecord(Entry):
    """What each component of the compressed pipeline computes differently, given the original's inputs."""

    kind: Literal["components"] = "components"
    pictures: int  # that were drawn to get the inputs
    macs: dict[Side, dict[str, int | None]]  # component -> multiply-accumulates per picture
    component_metrics: dict[str, Any]


Record = (
    ProcessRecord
    | PictureRecord
    | VariantRecord
    | ScoringRecord
    | ScoreRecord
    | VariantScoreRecord
    | SetScoreRecord
    | ComponentsRecord
)
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def parse_record(values: Mapping[str, Any]) -> Record:
    """Return the record of one line of a log, as it was parsed from JSON.

    Raises:
        ValueError: the values are no record.

    Examples:
        >>> parse_record({"kind": "judge", "scorer": None, "not_measured": {}}).to_json()
        {'kind': 'judge', 'scorer': None, 'not_measured': {}}
    """
    return _RECORD.validate_python(values)
