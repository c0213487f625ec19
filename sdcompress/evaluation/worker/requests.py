"""What a worker process can be asked for. Each request is one JSON line, told apart by `do`.

The answers are `OpenedPipeline`, `DrawnPicture`, `PairScores` and `SetScores` of `samples`, and those below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from sdcompress.evaluation.samples import Drawing, Entry


class Request(BaseModel):
    """Something that a worker process is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Prepare(Request):
    """Import the libraries that the pipeline in a folder needs. Answered with `Nothing`."""

    do: Literal["prepare"] = "prepare"
    path: str


class Open(Request):
    """Open the pipeline in a folder, in the place of an earlier one. Answered with `OpenedPipeline`."""

    do: Literal["open"] = "open"
    path: str
    device: str
    dtype: str
    threads: int | None
    low_memory: bool = False
    variant: str | None = None  # of the weight files of a torch pipeline
    swap: str | None = None  # the component to take from the ONNX or OpenVINO folder `swap_from`
    swap_from: str | None = None
    timed: bool = True  # if not, bfloat16 may be computed in another way that rounds alike


class Draw(Request):
    """Draw pictures in one batch and save the first. Answered with `DrawnPicture`, which is about the first."""

    do: Literal["draw"] = "draw"
    drawings: list[Drawing]
    options: dict[str, Any]  # arguments of the pipeline; None: its own default
    picture: str | None  # the PNG file to write
    warm_up: bool = False  # with few steps
    record: bool = False  # keep what the components get and return, for `SaveRecording`


class SaveRecording(Request):
    """Write the recorded calls of components, and record no more. Answered with `Recorded`."""

    do: Literal["save_recording"] = "save_recording"
    file: str


class Replay(Request):
    """Give recorded inputs to this pipeline's components. Answered with `Replayed`."""

    do: Literal["replay"] = "replay"
    file: str


class OpenMetrics(Request):
    """Open the networks of the metrics. Answered with `OpenedMetrics`."""

    do: Literal["open_metrics"] = "open_metrics"
    scorer: str | None  # folder of the CLIP model


class Score(Request):
    """Compare two picture files. Answered with `PairScores`."""

    do: Literal["score"] = "score"
    original: str
    compressed: str
    prompt: str


class ScoreSets(Request):
    """Compare two sets of picture files. Answered with `SetScores`."""

    do: Literal["score_sets"] = "score_sets"
    original: list[str]
    compressed: list[str]


class Nothing(Entry):
    """The answer where there is nothing to say."""


class Recorded(Entry):
    """Component -> multiply-accumulates per picture; None where they are not counted."""

    macs: dict[str, int | None]


class Replayed(Recorded):
    """As `Recorded`, and the component metrics."""

    figures: dict[str, Any]


class OpenedMetrics(Entry):
    """Metric -> why it cannot be measured."""

    not_measured: dict[str, str] = Field(default_factory=dict)


AnyRequest = Prepare | Open | Draw | SaveRecording | Replay | OpenMetrics | Score | ScoreSets
_REQUEST: TypeAdapter[AnyRequest] = TypeAdapter(Annotated[AnyRequest, Field(discriminator="do")])


def parse_request(values: Mapping[str, Any]) -> AnyRequest:
    """Return the request of one JSON line. Raises ValueError for anything else."""
    return _REQUEST.validate_python(values)
