"""A component after the first, the second, ... step of its recipe, made of the original again.

Where the artifact is an ONNX folder, all but the last of these are torch components: the same codes, not yet exported.
Nothing is ever trained again: what needs training is measured as part of the next one that does not need it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sdcompress.backends.component import Component, TrainingContext
from sdcompress.errors import EvaluationError, UserError
from sdcompress.evaluation.result import StepSwap
from sdcompress.execution.pruning import (
    apply_pruning_steps,
    gather_input_statistics,
    later_steps,
    pruned_source,
    pruning_steps,
)
from sdcompress.execution.write_component import write_safetensors
from sdcompress.files.manifest import MANIFEST_NAME, Manifest, is_artifact, read_manifest
from sdcompress.planning.plan import Plan, PlannedStep, make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.planning.steps import Stage
from sdcompress.progress import Listener
from sdcompress.sources.source import Source

TRAINING = "would have to be trained again, which an evaluation does not do; the next measured step holds it too"
ACTIVATIONS = "weights alone: the exported graph rounds the activations"


@dataclass(frozen=True)
class PartialRecipe:
    """How a component after some of its steps is made.

    Args:
        component: its name.
        plan: the plan of the steps so far.
        whole: the plan of the artifact, whose statistics are in the cache.
    """

    component: str
    plan: Plan
    whole: Plan


StepsOf = dict[str, tuple[StepSwap, ...]]  # component -> itself after each of its steps


def plan_steps(
    original: Source, compressed: Source, variants: Mapping[str, str]
) -> tuple[StepsOf, dict[str, PartialRecipe]]:
    """Plan each component after each of its steps; the last is the component as the artifact has it.

    Args:
        original: the pipeline that the artifact was made of.
        compressed: the artifact.
        variants: component -> the label of its own pictures.

    Returns:
        The steps of each component, and the label of a step's pictures -> how its component is made.

    Raises:
        EvaluationError: the steps are not known, or are not those of this original.
    """
    if original.format == "onnx":
        raise EvaluationError("the original is an ONNX folder, and steps work on torch weights")
    if compressed.path is None or not is_artifact(compressed.path):
        raise EvaluationError("the compressed pipeline is no artifact of sdcompress, so its steps are not known")
    manifest = read_manifest(compressed.path)
    _check_origin(manifest, original)
    steps = {name: entry.steps for name, entry in manifest.components.items() if entry.steps}
    if not steps:
        return {}, {}
    try:
        whole = _plan(manifest, steps, manifest.recipe["target"], original)
    except UserError as error:
        problems = "; ".join(map(str, error.problems))
        raise EvaluationError(f"the recipe cannot be planned on this original: {problems}") from None
    planned = {
        name: _steps_of(name, label, whole, manifest, compressed.components[name].weights_bytes)
        for name, label in variants.items()
        if name in steps and name in compressed.components
    }
    swaps = {name: tuple(swap for swap, _ in each) for name, each in planned.items()}
    recipes = {swap.variant: recipe for each in planned.values() for swap, recipe in each if recipe is not None}
    return swaps, recipes


def make_component(recipe: PartialRecipe, folder: Path, listener: Listener) -> None:
    """Write the component into `folder`, which is whole or not there; one that is there stays as it is."""
    if folder.is_dir():
        return
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_safetensors(_apply_steps(recipe, partial, listener), partial)
        _copy_other_files(recipe.plan.modified_source, recipe.component, partial)
        partial.rename(folder)
    except OSError as error:
        raise EvaluationError(
            f"{error.filename or partial}: {recipe.component} after some of its steps cannot be written "
            f"({error.strerror}); make room and run the same command again"
        ) from None


def model_index_entry(recipe: PartialRecipe) -> list[str]:
    """Return library and class of the component, as model_index.json has them."""
    spec = recipe.plan.after(recipe.component)
    return [spec.library, spec.class_name]


def _steps_of(
    name: str, label: str, whole: Plan, manifest: Manifest, weights_bytes: int
) -> list[tuple[StepSwap, PartialRecipe | None]]:
    """Return a component after each step that changes it, and how it is made; `weights_bytes`: after the last."""
    steps = [(place, step) for place, step in enumerate(whole.steps_of(name), 1) if _changes(step)]
    listed = manifest.components[name].steps
    before = whole.source.components[name].weights_bytes
    planned: list[tuple[StepSwap, PartialRecipe | None]] = []
    for place, step in steps:
        last = place == steps[-1][0]
        after = weights_bytes if last else step.planned.spec.weights_bytes
        variant = label if last else f"step-{name}-{place}"
        swap = StepSwap(step.step.kind, place, variant, after, before - after)
        planned.append((swap, None) if last else _plan_partly(swap, name, listed[:place], whole, manifest))
        before = after
    return planned


def _plan_partly(
    swap: StepSwap, name: str, steps: Sequence[Mapping[str, Any]], whole: Plan, manifest: Manifest
) -> tuple[StepSwap, PartialRecipe | None]:
    """Return how the component after these steps is made, or None and the step with the reason."""
    if whole.recipe.target != "torch":
        weights_alone = [_without_activations(step) for step in steps]
        swap = replace(swap, note=ACTIVATIONS if weights_alone != list(steps) else None)
        steps = weights_alone
    try:
        plan = _plan(manifest, {name: steps}, "torch", whole.source)
    except UserError as error:
        return replace(swap, not_measured=f"cannot be made for torch: {'; '.join(map(str, error.problems))}"), None
    calibrated = any(step.planned.calibrated for step in later_steps(plan.steps))
    # What later steps are calibrated on is the pipeline as all its pruning and training left it.
    if any(step.planned.trains for step in (whole.steps if calibrated else plan.steps)):
        return replace(swap, not_measured=TRAINING), None
    return swap, PartialRecipe(name, plan, whole)


def _plan(manifest: Manifest, components: Mapping[str, Any], target: str, original: Source) -> Plan:
    recipe = {**manifest.recipe, "components": dict(components), "target": target, "gates": []}
    return make_plan(parse_recipe(yaml.safe_dump(recipe), MANIFEST_NAME), original)


def _changes(step: PlannedStep) -> bool:
    """Return whether the step changes weights; a cast to the precision that they have does not."""
    return step.step.stage != Stage.CAST or step.planned.spec.tensors != step.before.tensors


def _without_activations(step: Mapping[str, Any]) -> dict[str, Any]:
    """Return the step without what it does to the layers' inputs."""
    spared: dict[str, Any] = {"activations": None, "activations_exclude": []}
    return {
        kind: {**values, **spared} if isinstance(values, Mapping) and values.get("activations") else values
        for kind, values in step.items()
    }


def _check_origin(manifest: Manifest, original: Source) -> None:
    """Raise EvaluationError if the artifact was made of another model than `original`, as far as sizes tell."""
    for name, entry in manifest.components.items():
        spec = original.components.get(name)
        found = None if spec is None else (spec.parameters, spec.weights_bytes)
        if found != (entry.parameters.original, entry.weights_bytes.original):
            raise EvaluationError(
                f"the artifact was made of {manifest.source.name}, whose {name} is not this original's"
            )


def _apply_steps(recipe: PartialRecipe, folder: Path, listener: Listener) -> Component:
    """Return the component after the steps; its tensors are computed when they are read.

    The statistics are those that the whole recipe gathers, which are in the cache since the artifact was made.
    """
    plan, whole, name = recipe.plan, recipe.whole, recipe.component
    originals = gather_input_statistics(whole, whole.modified_source, pruning_steps(whole.steps), listener)

    def pruned(of: Plan, each: str) -> Component:
        source = of.modified_source
        context = TrainingContext(source, folder, listener)
        return apply_pruning_steps(of, each, source.reader(each), originals.get(each, {}), context)

    component = pruned(plan, name)
    later = later_steps(plan.steps)
    if any(step.planned.calibrated for step in later):
        source = pruned_source(whole, {each: pruned(whole, each) for each in whole.source.components})
        statistics = gather_input_statistics(whole, source, later_steps(whole.steps), listener)
        component = replace(component, statistics=statistics.get(name, {}))
    for step in later:
        component = step.step.apply(component, step.planned)
    return component


def _copy_other_files(source: Source, name: str, folder: Path) -> None:
    for file in source.other_files:
        if file.parts[0] == name and file.name != "config.json":
            source.copy_file(file, folder.joinpath(*file.parts[1:]))
