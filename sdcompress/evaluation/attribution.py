"""Attribution: the original with one component of the compressed pipeline at a time, then one step of it at a time.

What each of them cost and saved is in the report; `step_ladder` says how a component after half its steps is made.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.drawing import Session, check_device
from sdcompress.evaluation.settings import choose_some
from sdcompress.evaluation.step_ladder import Rung, list_ladder, make_rung, model_index_entry
from sdcompress.files.artifact import link_folder
from sdcompress.files.manifest import is_artifact, read_manifest
from sdcompress.sources.source import Source

RUNGS_FOLDER = "rungs"  # in the evaluation's folder: components made for the ladder, until their pictures are drawn


@dataclass(frozen=True)
class Swap:
    """A component that both pipelines have, what swapping it saves, and the rungs of its ladder."""

    name: str
    steps: Sequence[Mapping[str, Any]]
    weights_bytes: int
    saved_bytes: int
    ladder: tuple[Rung, ...] = ()
    ladder_not_measured: str | None = None

    @property
    def variant(self) -> str:
        """The label of the swapped pipeline's pictures in the log and in `images/`."""
        return f"swap-{self.name}"

    @property
    def made(self) -> tuple[Rung, ...]:
        """The rungs to make and draw; the ladder's last is the component itself."""
        return tuple(rung for rung in self.ladder if rung.plan is not None)

    @property
    def variants(self) -> tuple[str, ...]:
        """The labels of all pictures that its rungs and it are judged by."""
        return (self.variant, *(rung.variant for rung in self.made))

    def described(self) -> dict[str, Any]:
        """What a report keeps of it."""
        return {
            "kind": "component",
            "name": self.name,
            "variant": self.variant,
            "steps": list(self.steps),
            "weights_bytes": self.weights_bytes,
            "saved_bytes": self.saved_bytes,
            "ladder": [rung.described() for rung in self.ladder],
            "ladder_not_measured": self.ladder_not_measured,
        }


def list_swaps(sources: Mapping[str, Source]) -> list[Swap]:
    """What can be swapped: each component with weights that both pipelines have, and the steps it was made by."""
    original, compressed = sources["original"], sources["compressed"]
    if original.format != "safetensors" and compressed.format != original.format:
        raise EvaluationError(
            f"--attribute: the original ({original.name}) holds exported graphs and the compressed pipeline does not; "
            f"torch components do not go into such a pipeline, so give the torch pipeline as the original"
        )
    if original.pipeline_class != compressed.pipeline_class:
        raise EvaluationError(
            f"--attribute: the original is a {original.pipeline_class}, the compressed a {compressed.pipeline_class}; "
            f"their components do not fit one another"
        )
    steps = _recipe_steps(compressed)
    swaps = []
    for name, spec in compressed.components.items():
        theirs = original.components.get(name)
        if theirs is None or not spec.parameters or not theirs.parameters:
            continue
        swaps.append(Swap(name, steps.get(name, []), spec.weights_bytes, theirs.weights_bytes - spec.weights_bytes))
    if not swaps:
        raise EvaluationError("--attribute: the two pipelines have no component with weights in common")
    return _with_ladders(swaps, original, compressed)


def draw_swaps(session: Session, swaps: Sequence[Swap]) -> None:
    """Draws what is missing of each swapped pipeline, in turn with the original, whose time it is compared with."""
    chosen = choose_some(list(session.drawings), session.settings.attribute_count)
    wanted = [(swap, rung) for swap in swaps for rung in (None, *swap.made)]
    todo = [(swap, rung, session.undrawn((rung or swap).variant, chosen)) for swap, rung in wanted]
    if not any(drawings for _, _, drawings in todo):
        return
    task = session.progress.add_task("attribution", total=sum(len(drawings) for _, _, drawings in todo))
    with session.worker(f"original ({session.paths['original']})", "original") as original:
        opened = session.open_side(original, "original")
        session.warm_up(original)
        for swap, rung, drawings in todo:
            if drawings:
                _draw_swap(session, swap, rung, drawings, original, opened, task)


def _draw_swap(
    session: Session,
    swap: Swap,
    rung: Rung | None,
    drawings: list[dict[str, Any]],
    original: Any,
    opened: dict[str, Any],
    task: Any,
) -> None:
    label, part = (swap.variant, swap.name) if rung is None else (rung.variant, f"{swap.name} after {rung.step}")
    session.progress.update(task, description=f"attribution: {part}")
    made = session.out / RUNGS_FOLDER / label
    if rung is not None:
        make_rung(rung, made, lambda *_: None)
    with (
        tempfile.TemporaryDirectory(prefix="sdcompress-swap-") as scratch,
        session.worker(f"original with the compressed {part}", label) as worker,
    ):
        request = _opening(session, swap, rung, made, Path(scratch) / "mixed")
        answer = worker.ask(do="open", **request, **session.opening["original"])
        check_device({"original": opened, "compressed": answer})
        session.warm_up(worker)
        for place, drawing in enumerate(drawings):
            file = session.picture_file(label, drawing["index"])
            answers = {}
            for which in ("original", "swap") if place % 2 == 0 else ("swap", "original"):
                side, picture = (original, None) if which == "original" else (worker, file)
                answers[which] = session.draw(side, drawing, picture)
            session.log.append(
                {
                    "kind": "variant",
                    "variant": label,
                    "index": drawing["index"],
                    **answers["swap"],
                    "original_latency_s": answers["original"]["latency_s"],
                }
            )
            session.progress.advance(task)
    shutil.rmtree(made, ignore_errors=True)  # it can be made again, and may be as large as the model


def _opening(session: Session, swap: Swap, rung: Rung | None, made: Path, mixed: Path) -> dict[str, str]:
    """What a worker is asked to open: the original, one component of it replaced."""
    original, compressed = session.paths["original"], session.paths["compressed"]
    if rung is None and session.onnx["compressed"]:
        return {"path": str(original), "swap": swap.name, "swap_from": str(compressed)}
    if rung is None:
        index = json.loads((compressed / "model_index.json").read_text(encoding="utf-8"))
        return {"path": str(mixed_folder(original, swap.name, compressed / swap.name, index[swap.name], mixed))}
    return {"path": str(mixed_folder(original, swap.name, made, model_index_entry(rung), mixed))}


def mixed_folder(original: Path, component: str, part: Path, entry: Sequence[str], folder: Path) -> Path:
    """A torch pipeline folder of links: everything is the original's, `component` is what lies in `part`.

    entry: the component's library and class, as model_index.json has them.
    """
    folder.mkdir(parents=True)
    index = json.loads((original / "model_index.json").read_text(encoding="utf-8"))
    merged = {**index, component: list(entry)}
    (folder / "model_index.json").write_text(json.dumps(merged, indent=2), encoding="utf-8")
    for name, value in merged.items():
        source = part if name == component else original / name
        if isinstance(value, list) and source.is_dir():
            link_folder(source, folder / name)
    return folder


def _with_ladders(swaps: Sequence[Swap], original: Source, compressed: Source) -> list[Swap]:
    try:
        ladders = list_ladder(original, compressed, {swap.name: swap.variant for swap in swaps})
    except EvaluationError as error:
        return [replace(swap, ladder_not_measured=str(error)) for swap in swaps]
    return [replace(swap, ladder=ladders.get(swap.name, ())) for swap in swaps]


def _recipe_steps(source: Source) -> dict[str, list[Any]]:
    """Component -> its recipe's steps, as the artifact's manifest has them; {} for a pipeline that is no artifact."""
    if source.path is None or not is_artifact(source.path):
        return {}
    return {name: entry.steps for name, entry in read_manifest(source.path).components.items()}
