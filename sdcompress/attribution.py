"""Attribution: the original with one component of the compressed pipeline at a time: what each one cost."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdcompress.drawing import Session, check_device
from sdcompress.errors import EvaluationError
from sdcompress.evaluation_settings import choose_some
from sdcompress.source import MANIFEST_NAME, Source


def swap_variant(component: str) -> str:
    """The label of a swapped pipeline's pictures in the log and in `images/`."""
    return f"swap-{component}"


def list_swaps(sources: Mapping[str, Source]) -> list[dict[str, Any]]:
    """What can be swapped: name, recipe steps, and bytes of each component with weights that both pipelines have."""
    original, compressed = sources["original"], sources["compressed"]
    if original.format != "safetensors":
        raise EvaluationError(
            f"--attribute: the original ({original.name}) holds exported graphs; attribution swaps components into a "
            f"torch pipeline, so give the torch pipeline as the original"
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
        swaps.append(
            {
                "kind": "component",
                "name": name,
                "steps": steps.get(name, []),
                "weights_bytes": spec.weights_bytes,
                "saved_bytes": theirs.weights_bytes - spec.weights_bytes,
            }
        )
    if not swaps:
        raise EvaluationError("--attribute: the two pipelines have no component with weights in common")
    return swaps


def draw_swaps(session: Session, swaps: Sequence[Mapping[str, Any]]) -> None:
    """Draws what is missing of each swapped pipeline, in turn with the original, whose time it is compared with."""
    chosen = choose_some(list(session.drawings), session.settings.attribute_count)
    todo = {swap["name"]: session.undrawn(swap_variant(swap["name"]), chosen) for swap in swaps}
    if not any(todo.values()):
        return
    task = session.progress.add_task("attribution", total=sum(map(len, todo.values())))
    with session.worker(f"original ({session.paths['original']})", "original") as original:
        opened = session.open_side(original, "original")
        session.warm_up(original)
        for name, drawings in todo.items():
            if drawings:
                session.progress.update(task, description=f"attribution: {name}")
                _draw_swap(session, name, drawings, original, opened, task)


def _draw_swap(
    session: Session, name: str, drawings: list[dict[str, Any]], original: Any, opened: dict[str, Any], task: Any
) -> None:
    label = swap_variant(name)
    with (
        tempfile.TemporaryDirectory(prefix="sdcompress-swap-") as scratch,
        session.worker(f"original with the compressed {name}", label) as worker,
    ):
        opening = dict(session.opening["original"])
        if session.onnx["compressed"]:
            request = {"path": session.paths["original"], "swap": name, "swap_from": str(session.paths["compressed"])}
        else:
            request = {"path": mixed_folder(session.paths, name, Path(scratch) / "mixed")}
        answer = worker.ask(do="open", **{**request, "path": str(request["path"])}, **opening)
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


def mixed_folder(paths: Mapping[str, Path], component: str, folder: Path) -> Path:
    """A torch pipeline folder of links: everything is the original's, `component` is the compressed pipeline's."""
    folder.mkdir(parents=True)
    indices = {
        side: json.loads((paths[side] / "model_index.json").read_text(encoding="utf-8"))
        for side in ("original", "compressed")
    }
    merged = {**indices["original"], component: indices["compressed"][component]}
    (folder / "model_index.json").write_text(json.dumps(merged, indent=2), encoding="utf-8")
    for name, value in merged.items():
        source = paths["compressed" if name == component else "original"] / name
        if isinstance(value, list) and source.is_dir():
            _link(source.resolve(), folder / name)
    return folder


def _link(source: Path, target: Path) -> None:
    try:
        os.symlink(source, target, target_is_directory=True)
    except (OSError, NotImplementedError):  # Windows lets few users make links
        shutil.copytree(source, target)


def _recipe_steps(source: Source) -> dict[str, list[Any]]:
    """Component -> its recipe's steps, as the artifact's manifest has them; {} for a pipeline that is no artifact."""
    if source.path is None or not (source.path / MANIFEST_NAME).is_file():
        return {}
    from sdcompress.artifact import read_manifest

    return {name: entry["steps"] for name, entry in read_manifest(source.path)["components"].items()}
