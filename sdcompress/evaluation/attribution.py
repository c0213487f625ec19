"""Attribution: the original with one component of the compressed pipeline at a time, then one step of it at a time.

The report has what each of them cost and saved; `steps_attribution` makes a component after some of its steps.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.result import ComponentSwap
from sdcompress.evaluation.samples import Drawing, OpenedPipeline, Side, VariantRecord
from sdcompress.evaluation.session import Session
from sdcompress.evaluation.settings import choose_some
from sdcompress.evaluation.steps_attribution import PartialRecipe, make_component, model_index_entry, plan_steps
from sdcompress.evaluation.worker.process import WorkerProcess
from sdcompress.evaluation.worker.requests import Open
from sdcompress.files.artifact import link_folder
from sdcompress.files.manifest import is_artifact, read_manifest
from sdcompress.sources.source import Source

STEPS_FOLDER = "swapped-steps"  # in the evaluation's folder: components made for this, until their pictures are drawn
SUBJECT = "attribution"


@dataclass(frozen=True)
class Attribution:
    """What is swapped, and how components that are not in the compressed pipeline are made.

    Args:
        swaps: each component with weights that both pipelines have.
        recipes: label of a step's pictures -> the recipe that makes its component.
    """

    swaps: tuple[ComponentSwap, ...] = ()
    recipes: Mapping[str, PartialRecipe] = field(default_factory=dict)

    @property
    def variants(self) -> list[tuple[str, ComponentSwap]]:
        """The label of each swapped pipeline's pictures, and its swap."""
        return [
            (label, swap)
            for swap in self.swaps
            for label in (swap.variant, *(step.variant for step in swap.after_steps if step.variant in self.recipes))
        ]


def plan_attribution(original: Source, compressed: Source) -> Attribution:
    """Return what can be swapped.

    Raises:
        EvaluationError: the components of the two pipelines do not fit one another.
    """
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
        saved = theirs.weights_bytes - spec.weights_bytes
        swaps.append(ComponentSwap(name, steps.get(name, []), spec.weights_bytes, saved))
    if not swaps:
        raise EvaluationError("--attribute: the two pipelines have no component with weights in common")
    try:
        after_steps, recipes = plan_steps(original, compressed, {swap.name: swap.variant for swap in swaps})
    except EvaluationError as error:
        return Attribution(tuple(replace(swap, steps_not_measured=str(error)) for swap in swaps))
    return Attribution(tuple(replace(swap, after_steps=after_steps.get(swap.name, ())) for swap in swaps), recipes)


def draw_swaps(session: Session, attribution: Attribution, drawings: Sequence[Drawing]) -> None:
    """Draw what is missing of each swapped pipeline, in turn with the original, whose time it is compared with."""
    chosen = choose_some(drawings, session.settings.attribute_count)
    todo = [(label, swap, session.undrawn(label, chosen)) for label, swap in attribution.variants]
    count = sum(len(undrawn) for _, _, undrawn in todo)
    if not count:
        return
    session.expect("drawing", SUBJECT, count)
    (original,) = session.pipelines("original")
    with session.start("original with a compressed component", "attribution") as swapped:
        for label, swap, undrawn in todo:
            if undrawn:
                _draw_swap(session, label, swap, attribution.recipes.get(label), undrawn, (original, swapped))


def _draw_swap(
    session: Session,
    label: str,
    swap: ComponentSwap,
    recipe: PartialRecipe | None,
    drawings: Sequence[Drawing],
    workers: tuple[WorkerProcess, WorkerProcess],
) -> None:
    original, swapped = workers
    made = session.out / STEPS_FOLDER / label
    if recipe is not None:
        make_component(recipe, made, session.listener)
    swapped.subject = f"original with the compressed {swap.name}" + ("" if recipe is None else f" ({label})")
    with tempfile.TemporaryDirectory(prefix="sdcompress-swap-") as scratch:
        where = _where(session.paths, session.of_graphs["compressed"], swap, recipe, made, Path(scratch) / "mixed")
        session.check_device(swapped.ask(Open(**where, **session.opening["original"]), OpenedPipeline))
        session.warm_up(swapped)
        for place, drawing in enumerate(drawings):
            file = session.picture_file(label, drawing.index)
            turns = ((original, None), (swapped, file))
            drawn = {
                worker: session.draw(worker, [drawing], to) for worker, to in turns[:: 1 if place % 2 == 0 else -1]
            }
            values = {"variant": label, "index": drawing.index, **drawn[swapped].to_json()}
            session.log.append(VariantRecord(**values, original_latency_s=drawn[original].latency_s))
            session.advance("drawing", SUBJECT)
    shutil.rmtree(made, ignore_errors=True)  # it can be made again, and may be as large as the model


def _where(
    paths: Mapping[Side, Path],
    of_graphs: bool,
    swap: ComponentSwap,
    recipe: PartialRecipe | None,
    made: Path,
    mixed: Path,
) -> dict[str, str]:
    """Return the fields of `Open` that say which component replaces the original's."""
    original, compressed = paths["original"], paths["compressed"]
    if recipe is not None:
        return {"path": str(mixed_folder(original, swap.name, made, model_index_entry(recipe), mixed))}
    if of_graphs:
        return {"path": str(original), "swap": swap.name, "swap_from": str(compressed)}
    index = json.loads((compressed / "model_index.json").read_text(encoding="utf-8"))
    return {"path": str(mixed_folder(original, swap.name, compressed / swap.name, index[swap.name], mixed))}


def mixed_folder(original: Path, component: str, part: Path, entry: Sequence[str], folder: Path) -> Path:
    """Return a torch pipeline's folder of links: everything is the original's but one component.

    Args:
        original: the original's folder.
        component: what is replaced.
        part: the folder of what replaces it.
        entry: the component's library and class, as model_index.json has them.
        folder: the folder to make.
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


def _recipe_steps(source: Source) -> dict[str, list[Any]]:
    """Return component -> its recipe's steps, from the artifact's manifest; {} for a pipeline that is no artifact."""
    if source.path is None or not is_artifact(source.path):
        return {}
    return {name: entry.steps for name, entry in read_manifest(source.path).components.items()}
