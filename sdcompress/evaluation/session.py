"""One evaluation while it runs: its worker processes, its sample log, and its progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.metrics.scorer import Scorer
from sdcompress.evaluation.sample_log import SampleLog
from sdcompress.evaluation.samples import (
    Drawing,
    DrawnPicture,
    OpenedPipeline,
    ProcessRecord,
    ScoringRecord,
    Side,
    VariantRecord,
)
from sdcompress.evaluation.settings import EvaluationSettings
from sdcompress.evaluation.worker.process import WorkerProcess
from sdcompress.evaluation.worker.requests import Draw, Nothing, Open, OpenedMetrics, OpenMetrics, Prepare
from sdcompress.progress import Activity, Listener, ProgressEvent, silent


@dataclass
class Session:
    """What is compared, how, and with which processes. Use as a context manager: leaving it ends all processes.

    Each pipeline is opened once, in a process of its own, when it is first needed.

    Args:
        log: the sample log.
        out: the folder of pictures and logs.
        paths: the folders of both pipelines.
        opening: arguments of `Open` for each pipeline.
        of_graphs: whether a pipeline is an ONNX or OpenVINO folder.
        settings: how to evaluate.
        scorer: the CLIP model; None for no CLIP scores.
        drawings: every drawing that the evaluation may draw.
        options: arguments of both pipelines, such as num_inference_steps.
        listener: told of every finished picture.
    """

    log: SampleLog
    out: Path
    paths: Mapping[Side, Path]
    opening: Mapping[Side, Mapping[str, Any]]
    of_graphs: Mapping[Side, bool]
    settings: EvaluationSettings
    scorer: Scorer | None
    drawings: Sequence[Drawing]
    options: Mapping[str, Any]
    listener: Listener = silent
    to_record: int = 0  # pictures during which the original's components are recorded
    recorded: int = 0  # such pictures so far
    _processes: ExitStack = field(default_factory=ExitStack)
    _pipelines: dict[Side, WorkerProcess] = field(default_factory=dict)
    _opened: dict[Side, OpenedPipeline] = field(default_factory=dict)
    _scoring: WorkerProcess | None = None
    _progress: dict[tuple[Activity, str], list[int]] = field(default_factory=dict)  # done, total

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    def start(self, subject: str, log_name: str) -> WorkerProcess:
        """Return a new process. It ends when the caller leaves its context, or with the session."""
        threads = self.settings.threads
        environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        return WorkerProcess(subject, self.out / "logs" / f"{log_name}.log", environment=environment)

    def pipelines(self, *sides: Side) -> list[WorkerProcess]:
        """Return the processes of these pipelines, opened and warmed up. New ones import their libraries together."""
        new = [side for side in sides if side not in self._pipelines]
        for side in new:
            worker = self._processes.enter_context(self.start(f"{side} ({self.paths[side]})", side))
            self._pipelines[side] = worker
            worker.send(Prepare(path=str(self.paths[side])).model_dump(mode="json"))
        for side in new:
            Nothing.model_validate(self._pipelines[side].receive())
        for side in new:
            self._open(side)
        return [self._pipelines[side] for side in sides]

    def reopen_original(self, dtype: str) -> WorkerProcess:
        """Return the original's process with the pipeline in another precision, for pictures whose time nobody reads.

        Later calls get that one too.
        """
        (worker,) = self.pipelines("original")
        opening = {**self.opening["original"], "dtype": dtype, "timed": False}
        worker.ask(Open(path=str(self.paths["original"]), **opening), OpenedPipeline)
        self.warm_up(worker)
        return worker

    def scoring(self) -> WorkerProcess:
        """Return the process that scores pictures, its networks opened."""
        if self._scoring is None:
            worker = self._processes.enter_context(self.start("scoring", "scoring"))
            path = None if self.scorer is None else str(self.scorer.path)
            opened = worker.ask(OpenMetrics(scorer=path), OpenedMetrics)
            self.log.append(ScoringRecord(scorer=self.scorer_name, not_measured=opened.not_measured))
            self._scoring = worker
        return self._scoring

    def end_pipelines(self) -> None:
        """End the processes of both pipelines, which gives their memory back."""
        for worker in self._pipelines.values():
            worker.__exit__(None, None, None)
        self._pipelines.clear()

    @property
    def scorer_name(self) -> str | None:
        """The name of the CLIP model in the log."""
        return None if self.scorer is None else self.scorer.name

    def draw(
        self, worker: WorkerProcess, drawings: Sequence[Drawing], picture: Path | None, *, record: bool = False
    ) -> DrawnPicture:
        """Return what the worker measured while it drew the pictures in one batch; the first is saved to `picture`."""
        self.recorded += record
        file = None if picture is None else str(picture)
        return worker.ask(
            Draw(drawings=list(drawings), options=dict(self.options), picture=file, record=record), DrawnPicture
        )

    def warm_up(self, worker: WorkerProcess) -> float:
        """Return the seconds of a first, short drawing that is not measured."""
        first = self.drawings[0].model_copy(update={"seed": 0})
        request = Draw(drawings=[first], options=dict(self.options), picture=None, warm_up=True)
        return worker.ask(request, DrawnPicture).latency_s

    def check_device(self, opened: OpenedPipeline) -> None:
        """Raise EvaluationError if a pipeline does not run on the device of the original."""
        original = self._opened.get("original", opened)
        if opened.device != original.device:
            raise EvaluationError(
                f"the original runs on {original.device}, the compressed pipeline on {opened.device}, which compares "
                f"devices, not pipelines; give --device cpu, or install the onnxruntime package for {original.device} "
                f"(sdcompress doctor)"
            )

    def picture_file(self, label: str, index: int) -> Path:
        """Return where a picture of a side or a variant belongs; its folder exists."""
        file = self.out / picture_path(label, index)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def has_picture(self, label: str, index: int) -> bool:
        """Return whether the picture is in its folder."""
        return (self.out / picture_path(label, index)).is_file()

    def undrawn(self, variant: str, drawings: Sequence[Drawing]) -> list[Drawing]:
        """Return the drawings of which the log, or the folder of pictures, has none by that variant."""
        done = {record.index for record in self.log.of(VariantRecord) if record.variant == variant}
        return [each for each in drawings if each.index not in done or not self.has_picture(variant, each.index)]

    def expect(self, activity: Activity, subject: str, count: int) -> None:
        """Tell the listener that so many pictures more are to be done."""
        self._count(activity, subject, 0, count)

    def advance(self, activity: Activity, subject: str) -> None:
        """Tell the listener that a picture is done."""
        self._count(activity, subject, 1, 0)

    def _count(self, activity: Activity, subject: str, done: int, expected: int) -> None:
        counts = self._progress.setdefault((activity, subject), [0, 0])
        counts[0] += done
        counts[1] += expected
        if counts[1]:
            self.listener(ProgressEvent(activity, subject, done=counts[0], total=counts[1], unit="pictures"))

    def _open(self, side: Side) -> None:
        worker = self._pipelines[side]
        opened = worker.ask(Open(path=str(self.paths[side]), **self.opening[side]), OpenedPipeline)
        self._opened[side] = opened
        self.check_device(opened)
        warm_up_s = self.warm_up(worker)
        self.log.append(ProcessRecord(side=side, **opened.to_json(), warm_up_latency_s=warm_up_s))


def picture_path(label: str, index: int) -> str:
    """Return where a picture belongs, relative to the evaluation's folder."""
    return f"images/{label}/{index:04d}.png"
