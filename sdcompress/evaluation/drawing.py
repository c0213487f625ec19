"""Drawing with worker processes: the pair in turn, and variants of the original; all is logged as it is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.metrics.scorer import Scorer
from sdcompress.evaluation.sample_log import SampleLog
from sdcompress.evaluation.settings import EvaluationSettings
from sdcompress.evaluation.worker.process import WorkerProcess

if TYPE_CHECKING:
    from rich.progress import Progress

SIDES = ("original", "compressed")


@dataclass(frozen=True)
class Session:
    """One evaluation: what is compared, how, and where its samples go."""

    log: SampleLog
    out: Path
    paths: Mapping[str, Path]
    opening: Mapping[str, Mapping[str, Any]]
    onnx: Mapping[str, bool]  # whether a side is an ONNX folder
    settings: EvaluationSettings
    drawings: Sequence[dict[str, Any]]
    options: Mapping[str, Any]
    progress: Progress

    @contextmanager
    def worker(self, subject: str, log_name: str) -> Iterator[WorkerProcess]:
        """A fresh process, ended when the context is left."""
        threads = self.settings.threads
        environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        with WorkerProcess(subject, self.out / "logs" / f"{log_name}.log", environment=environment) as worker:
            yield worker

    def open_side(self, worker: WorkerProcess, side: str) -> dict[str, Any]:
        """What the worker answers once it has opened the original or the compressed pipeline."""
        return worker.ask(do="open", path=str(self.paths[side]), **self.opening[side])

    def draw(self, worker: WorkerProcess, drawing: Mapping[str, Any], picture: Path | None) -> dict[str, Any]:
        """What the worker answers once it has drawn the picture, and saved it unless `picture` is None."""
        return worker.ask(
            do="draw",
            prompt=drawing["prompt"],
            seed=drawing["seed"],
            options=dict(self.options),
            picture=None if picture is None else str(picture),
            inputs=drawing.get("inputs"),
        )

    def warm_up(self, worker: WorkerProcess) -> float:
        """Seconds of a first, short drawing that is not measured."""
        first, options = self.drawings[0], dict(self.options)
        answer = worker.ask(
            do="draw",
            prompt=first["prompt"],
            seed=0,
            options=options,
            picture=None,
            warm_up=True,
            inputs=first.get("inputs"),
        )
        return float(answer["latency_s"])

    def picture_file(self, label: str, index: int) -> Path:
        """Where a picture of a side or a variant lies; its folder exists."""
        file = self.out / picture_path(label, index)
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def undrawn(self, variant: str, drawings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The drawings of which the log, or the folder of pictures, has none by that variant."""
        done = {record["index"] for record in self.log.of_kind("variant") if record["variant"] == variant}
        return [
            drawing
            for drawing in drawings
            if drawing["index"] not in done or not (self.out / picture_path(variant, drawing["index"])).is_file()
        ]


def picture_path(label: str, index: int) -> str:
    """Where a picture lies, relative to the evaluation's folder."""
    return f"images/{label}/{index:04d}.png"


def draw_pair(session: Session) -> None:
    """Draws what is missing of both pipelines, their pictures in turn."""
    todo = _missing(session)
    if not todo:
        return
    task = session.progress.add_task("loading both pipelines", total=None)
    with ExitStack() as stack:
        workers, opened = {}, {}
        for side in SIDES:
            worker = stack.enter_context(session.worker(f"{side} ({session.paths[side]})", side))
            opened[side] = session.open_side(worker, side)
            check_device(opened)
            warm_s = session.warm_up(worker)
            session.log.append({"kind": "process", "side": side, **opened[side], "warm_up_latency_s": warm_s})
            workers[side] = worker
        session.progress.update(task, description="drawing", total=len(todo), completed=0)
        session.progress.reset(task)
        for drawing, repeat, side in todo:
            index = drawing["index"]
            answer = session.draw(workers[side], drawing, None if repeat else session.picture_file(side, index))
            session.log.append({"kind": "picture", "side": side, "index": index, "repeat": repeat, **answer})
            session.progress.advance(task)


def score_all(session: Session, scorer: Scorer | None, variants: Sequence[str]) -> None:
    """Scores every pair of pictures, and every variant's beside the original's, once all pipelines have left memory."""
    name = None if scorer is None else scorer.name
    records = session.log.records
    done = {("compressed", r["index"]) for r in records if r["kind"] == "score" and r["scorer"] == name}
    done |= {(r["variant"], r["index"]) for r in records if r["kind"] == "variant_score" and r["scorer"] == name}
    drawn = {(r["variant"], r["index"]) for r in records if r["kind"] == "variant" and r["variant"] in variants}
    drawn |= {("compressed", drawing["index"]) for drawing in session.drawings}
    todo = [
        (label, drawing)
        for label in ("compressed", *variants)
        for drawing in session.drawings
        if (label, drawing["index"]) in drawn - done
    ]
    sets = [
        label
        for label in ("compressed", "floor-seed")
        if (label == "compressed" or label in variants) and not _has_set(session, label, name)
    ]
    if not todo and not sets:
        return
    task = session.progress.add_task("scoring", total=len(todo))
    with session.worker("scoring", "scoring") as worker:
        opened = worker.ask(do="open_judge", scorer=None if scorer is None else str(scorer.path))
        session.log.append({"kind": "judge", "scorer": name, "not_measured": opened.get("not_measured", {})})
        for label, drawing in todo:
            index = drawing["index"]
            files = {"original": _picture(session, "original", index), "compressed": _picture(session, label, index)}
            figures = worker.ask(do="score", prompt=drawing["prompt"], **files)
            if label == "compressed":
                session.log.append({"kind": "score", "index": index, "scorer": name, **figures})
            else:
                session.log.append(
                    {"kind": "variant_score", "variant": label, "index": index, "scorer": name, **figures}
                )
            session.progress.advance(task)
        for label in sets:
            _score_set(session, worker, label, name)


def _score_set(session: Session, worker: WorkerProcess, label: str, scorer: str | None) -> None:
    """Logs the distance of two sets of pictures: of all of them, and of those that the reseeded original drew too."""
    reseeded = {r["index"] for r in session.log.of_kind("variant") if r["variant"] == "floor-seed"}
    everything = [drawing["index"] for drawing in session.drawings]
    for over, indices in (("all", everything), ("floor", [index for index in everything if index in reseeded])):
        if len(indices) < 2 or (over == "all" and label != "compressed"):
            continue
        sets = {
            side: [_picture(session, name, index) for index in indices]
            for side, name in (("original", "original"), ("compressed", label))
        }
        answer = worker.ask(do="score_sets", **sets)
        session.log.append(
            {"kind": "set_score", "label": label, "over": over, "scorer": scorer, "count": len(indices), **answer}
        )


def _has_set(session: Session, label: str, scorer: str | None) -> bool:
    """Whether the sets are scored, over the reseeded pictures as they are now."""
    scored = [r for r in session.log.of_kind("set_score") if (r["label"], r["scorer"]) == (label, scorer)]
    over = {(record["over"], record["count"]) for record in scored}
    reseeded = {r["index"] for r in session.log.of_kind("variant") if r["variant"] == "floor-seed"}
    wanted = {("floor", len(reseeded))} if len(reseeded) > 1 else set()
    if label == "compressed" and len(session.drawings) > 1:
        wanted.add(("all", len(session.drawings)))
    return wanted <= over


def _picture(session: Session, label: str, index: int) -> str:
    return str(session.out / picture_path(label, index))


def _missing(session: Session) -> list[tuple[dict[str, Any], int, str]]:
    """The drawings still to do, in the order original, compressed, compressed, original, ... of the whole run."""
    done = {(record["index"], record["repeat"], record["side"]) for record in session.log.of_kind("picture")}
    todo = []
    for drawing in session.drawings:
        for repeat in range(session.settings.latency_repeats):
            for side in SIDES if (drawing["index"] + repeat) % 2 == 0 else reversed(SIDES):
                there = (session.out / picture_path(side, drawing["index"])).is_file()
                if (drawing["index"], repeat, side) not in done or (repeat == 0 and not there):
                    todo.append((drawing, repeat, side))
    return todo


def check_device(opened: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises EvaluationError when two pipelines do not run on the same device."""
    devices = [answer["device"] for answer in opened.values()]
    if len(set(devices)) > 1:
        raise EvaluationError(
            f"the original runs on {devices[0]}, the compressed pipeline on {devices[1]}, which compares devices, not "
            f"pipelines; give --device cpu, or install the onnxruntime package for {devices[0]} (sdcompress doctor)"
        )
