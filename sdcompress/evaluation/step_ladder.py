"""The ladder of steps: each component after the first, the second, ... step of its recipe, made of the original again.

Where the artifact is an ONNX folder, the rungs below its last are torch components: the same codes, not yet exported.
Nothing is ever trained again: a rung that stands on training is measured as part of the next one that does not need it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from sdcompress.backends.component import Component, TrainingContext
from sdcompress.errors import EvaluationError, UserError
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

TRAINING = "would have to be trained again, which an evaluation does not do; the next measured rung holds it too"
ACTIVATIONS = "weights alone: the exported graph rounds the activations"


@dataclass(frozen=True)
class Rung:
    """A component after one more step of its recipe: what the step saves, and how the rung is made."""

    component: str
    step: str  # the kind of the step it ends with
    place: int  # of that step in the component's list, counted from 1
    variant: str  # the label of its pictures in the log and in `images/`
    weights_bytes: int
    saved_bytes: int  # by this step alone
    not_measured: str | None = None
    note: str | None = None
    plan: Plan | None = field(default=None, repr=False)  # of the steps so far; None where there is nothing to make
    whole: Plan | None = field(default=None, repr=False)  # of the artifact, whose statistics the cache has

    def described(self) -> dict[str, Any]:
        """What a report keeps of it."""
        names = ("step", "place", "variant", "weights_bytes", "saved_bytes", "not_measured", "note")
        return {name: getattr(self, name) for name in names}


def list_ladder(original: Source, compressed: Source, components: Mapping[str, str]) -> dict[str, tuple[Rung, ...]]:
    """Component -> its rungs, the last being the component as the artifact has it.

    components: component -> the label of its own pictures. Raises EvaluationError when there is no ladder to climb.
    """
    if original.format == "onnx":
        raise EvaluationError("the original is an ONNX folder, and steps are carried out on torch weights")
    if compressed.path is None or not is_artifact(compressed.path):
        raise EvaluationError("the compressed pipeline is no artifact of sdcompress, so its steps are not known")
    manifest = read_manifest(compressed.path)
    _check_origin(manifest, original)
    made = {name: entry.steps for name, entry in manifest.components.items() if entry.steps}
    if not made:
        return {}
    try:
        whole = _plan(manifest, made, manifest.recipe["target"], original)
    except UserError as error:
        raise EvaluationError(
            f"the recipe cannot be planned on this original: {'; '.join(map(str, error.problems))}"
        ) from None
    return {
        name: _rungs(name, label, whole, manifest, compressed)
        for name, label in components.items()
        if name in made and name in compressed.components
    }


def make_rung(rung: Rung, folder: Path, listener: Listener) -> None:
    """Writes the rung's component into `folder`, which is whole or not there; one that is there stays as it is."""
    if folder.is_dir():
        return
    assert rung.plan is not None and rung.whole is not None
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_safetensors(_worked(rung.plan, rung.whole, rung.component, partial, listener), partial)
        _copy_other_files(rung.plan.modified_source, rung.component, partial)
        partial.rename(folder)
    except OSError as error:
        raise EvaluationError(
            f"{error.filename or partial}: {rung.component} after {rung.step} cannot be written ({error.strerror}); "
            f"make room and run the same command again"
        ) from None


def model_index_entry(rung: Rung) -> list[str]:
    """Library and class of the rung's component, as model_index.json has them."""
    assert rung.plan is not None
    spec = rung.plan.after(rung.component)
    return [spec.library, spec.class_name]


def _rungs(name: str, label: str, whole: Plan, manifest: Manifest, compressed: Source) -> tuple[Rung, ...]:
    steps = [(place, step) for place, step in enumerate(whole.steps_of(name), 1) if _changes(step)]
    listed = manifest.components[name].steps
    before = whole.source.components[name].weights_bytes
    rungs: list[Rung] = []
    for place, step in steps:
        last = place == steps[-1][0]
        after = compressed.components[name].weights_bytes if last else step.planned.spec.weights_bytes
        variant = label if last else f"step-{name}-{place}"
        rung = Rung(name, step.step.kind, place, variant, after, before - after)
        rungs.append(rung if last else _planned(rung, listed[:place], whole, manifest))
        before = after
    return tuple(rungs)


def _planned(rung: Rung, steps: Sequence[Mapping[str, Any]], whole: Plan, manifest: Manifest) -> Rung:
    """The rung with the plan that makes it, or the reason why it is not made."""
    note = None
    if whole.recipe.target != "torch":
        weights_alone = [_without_activations(step) for step in steps]
        note = ACTIVATIONS if weights_alone != list(steps) else None
        steps = weights_alone
    try:
        plan = _plan(manifest, {rung.component: steps}, "torch", whole.source)
    except UserError as error:
        return replace(rung, note=note, not_measured=f"cannot be made for torch: {'; '.join(map(str, error.problems))}")
    calibrated = any(step.planned.calibrated for step in later_steps(plan.steps))
    # What later steps are calibrated on is the pipeline as all its pruning and training left it.
    if any(step.planned.trains for step in (whole.steps if calibrated else plan.steps)):
        return replace(rung, note=note, not_measured=TRAINING)
    return replace(rung, note=note, plan=plan, whole=whole)


def _plan(manifest: Manifest, components: Mapping[str, Any], target: str, original: Source) -> Plan:
    recipe = {**manifest.recipe, "components": dict(components), "target": target, "gates": []}
    return make_plan(parse_recipe(yaml.safe_dump(recipe), MANIFEST_NAME), original)


def _changes(step: PlannedStep) -> bool:
    """Whether the step leaves weights other than it finds them; a cast to the precision they have does not."""
    return step.step.stage != Stage.CAST or step.planned.spec.tensors != step.before.tensors


def _without_activations(step: Mapping[str, Any]) -> dict[str, Any]:
    """The step of a recipe, its layers' inputs left as they are."""
    spared: dict[str, Any] = {"activations": None, "activations_exclude": []}
    return {
        kind: {**values, **spared} if isinstance(values, Mapping) and values.get("activations") else values
        for kind, values in step.items()
    }


def _check_origin(manifest: Manifest, original: Source) -> None:
    """EvaluationError where the artifact was made of another model than `original`, as far as sizes tell."""
    for name, entry in manifest.components.items():
        spec = original.components.get(name)
        found = None if spec is None else (spec.parameters, spec.weights_bytes)
        if found != (entry.parameters.original, entry.weights_bytes.original):
            raise EvaluationError(
                f"the artifact was made of {manifest.source.name}, whose {name} is not this original's"
            )


def _worked(plan: Plan, whole: Plan, name: str, folder: Path, listener: Listener) -> Component:
    """The component with all of the plan's steps behind it, its tensors computed when they are read.

    Statistics are those that the whole recipe gathers, which the cache has from when the artifact was made.
    """

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
