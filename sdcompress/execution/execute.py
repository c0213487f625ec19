"""Carrying a plan out: one component at a time, one tensor at a time, into a folder that appears when it is whole."""

from __future__ import annotations

import errno
import math
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial as partial_function
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.backends.component import Component, TrainingContext
from sdcompress.environment import installed_versions
from sdcompress.errors import ArtifactError, InternalError, SdcompressError, SourceError, TrainingError
from sdcompress.execution.model_card import model_card
from sdcompress.execution.pruned_source import later_steps, pruned_source, pruning_steps
from sdcompress.execution.ranges import Ranges, calibrate, dump_ranges, parse_ranges
from sdcompress.execution.run_state import STATE_NAME, RunState
from sdcompress.families.onnx_parts import vae_scale
from sdcompress.files.artifact import (
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    check_output,
    partial_folder,
    publish,
    sha256_of,
    write_json,
)
from sdcompress.files.safetensors_file import StreamWriter
from sdcompress.planning.plan import Plan, PlannedStep, calibrated_of
from sdcompress.planning.steps import LayerOutcome, Record
from sdcompress.planning.steps.export import Export
from sdcompress.sources.quantized_source import copy_component, quantized_as
from sdcompress.sources.source import Source
from sdcompress.sources.spec import ComponentSpec, TensorSpec
from sdcompress.version import __version__

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.activations import LayerRanges
    from sdcompress.quant.statistics import LayerStatistics

TRAINING_FOLDER = "training"  # in the .partial folder: checkpoints
_LIBRARY_WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors"}
_SPARE_BYTES = 2**20


def execute(
    plan: Plan,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    advance: Callable[[str, int], None] = lambda component, size_bytes: None,
    calibrating: Callable[[str, int, int], None] = lambda component, done, total: None,
    training: Callable[[str, float, float, str], None] = lambda component, done, total, said: None,
) -> dict[str, Any]:
    """The manifest of the artifact written to `out`; `advance` is told component and source bytes as they are done.

    Where the recipe calibrates, `calibrating` is told the component that runs, the runs done and their number; where it
    trains, `training` is told the component, what is done, what there is to do, and a line about it.
    Raises ArtifactError (output in the way, disk full), SourceError (weights unreadable). After an error nothing is
    left of a fresh run; an interrupted one leaves `OUT.partial`, which `resume` continues.
    """
    source = plan.source
    if source.path is None:
        if source.kind == "single-file":
            raise SourceError(
                f"{source.name}: its tokenizers' vocabularies are not here; `sdcompress.sources.opening.with_weights` "
                f"fetches them, or name a pipeline's folder that has them with --like"
            )
        raise SourceError(
            f"{source.name}: is a catalog entry without weights; give a folder, or the hub id {source.hub_id}"
        )
    check_output(out, resume=resume, force=force)
    partial = partial_folder(out)
    fresh = not (resume and partial.exists())
    if fresh:
        shutil.rmtree(partial, ignore_errors=True)
    with _cleaning(partial, fresh):
        state = RunState.open(partial, plan, fresh)
        _check_space(plan, out, state)
        due = set(source.components) - set(state.finished)
        prepared = plan.prepared
        originals = gather_input_statistics(plan, prepared, pruning_steps(plan.steps), calibrating) if due else {}
        begun: dict[str, Begun] = {}
        for name in source.components if due else ():
            context = TrainingContext(prepared, partial / TRAINING_FOLDER / name, calibrating, training)
            begun[name] = begin_component(plan, name, originals.get(name, {}), context, partial_function(advance, name))
        pruned = pruned_source(plan, {name: one.part for name, one in begun.items()})
        ranges = _calibrated(plan, pruned, state, calibrating)
        statistics = gather_input_statistics(plan, pruned, later_steps(plan.steps), calibrating) if due else {}
        del pruned  # which holds what was trained
        for name in source.components:
            if name not in state.finished:
                advance(f"{name}: graph" if plan.recipe.target == "onnx" else name, 0)
                entry = _write_component(plan, begun.pop(name), partial, ranges.get(name, {}), statistics.get(name, {}))
                state.finish(name, entry)
            else:
                advance(name, plan.prepared.components[name].weights_bytes)
        _copy_files(plan, partial)
        manifest = _manifest(plan, state.finished)
        if plan.replaced_parts:
            manifest["replaced_parts"] = plan.replaced_parts
        if state.ranges:
            manifest["activation_ranges"] = state.ranges
        (partial / "README.md").write_text(model_card(plan, manifest), encoding="utf-8")
        (partial / STATE_NAME).unlink()
        shutil.rmtree(partial / TRAINING_FOLDER, ignore_errors=True)
        manifest["files"] = {
            str(file.relative_to(partial)): {"size_bytes": file.stat().st_size, "sha256": sha256_of(file)}
            for file in sorted(file for file in partial.rglob("*") if file.is_file())
        }
        write_json(partial / MANIFEST_NAME, manifest)
        publish(partial, out)
    return manifest


def weights_file(component: ComponentSpec) -> str:
    """The file name the component's library saves its weights under."""
    return _LIBRARY_WEIGHTS.get(component.library, "model.safetensors")


@contextmanager
def _cleaning(partial: Path, fresh: bool) -> Iterator[None]:
    """Removes what a fresh run wrote, new parent folders too, when it fails for a reason resuming would not mend."""
    missing = [folder for folder in (partial, *partial.parents) if not folder.exists()]
    try:
        yield
    except OSError as error:
        if fresh:
            shutil.rmtree(missing[-1], ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ArtifactError(
                f"{partial.parent}: the disk is full; free some space or choose another --out"
            ) from None
        raise ArtifactError(f"{error.filename or partial}: cannot be written ({error.strerror})") from None
    except TrainingError:
        raise  # other settings can go on from what was kept
    except SdcompressError:
        if fresh:
            shutil.rmtree(missing[-1], ignore_errors=True)
        raise


def _check_space(plan: Plan, out: Path, state: RunState) -> None:
    others = sum(plan.prepared.file_bytes(file) for file in plan.prepared.other_files)
    due = sum(plan.after(name).weights_bytes for name in plan.source.components if name not in state.finished)
    scratch = max(
        (step.planned.scratch_bytes for step in plan.steps if step.component not in state.finished), default=0
    )
    needed = due + others + scratch + _SPARE_BYTES
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise ArtifactError(
            f"{out.parent}: the disk is full: the artifact needs {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are "
            f"free; free some space or choose another --out"
        )


def _calibrated(plan: Plan, source: Source, state: RunState, calibrating: Callable[[str, int, int], None]) -> Ranges:
    """The plan's activation ranges, which a resumed run takes from where the killed one kept them."""
    if state.ranges is None:
        state.keep_ranges(dump_ranges(calibrate(plan, calibrating, source)))
    assert state.ranges is not None
    return parse_ranges(state.ranges)


def gather_input_statistics(
    plan: Plan, source: Source, steps: Iterable[PlannedStep], calibrating: Callable[[str, int, int], None]
) -> Mapping[str, Mapping[str, LayerStatistics]]:
    """Component -> layer -> what goes into it, of the layers that the steps are calibrated on; kept between runs."""
    wanted = calibrated_of(steps)
    if not wanted:
        return {}
    from sdcompress.backends.torch.input_statistics import load_or_gather

    return load_or_gather(source, wanted, plan.recipe.calibration, calibrating)


@dataclass
class Begun:
    """A component with the steps behind it that settle its weights, and what they found out."""

    part: Component
    record: Record


def begin_component(
    plan: Plan,
    name: str,
    statistics: Mapping[str, LayerStatistics],
    context: TrainingContext,
    advance: Callable[[int], None],
) -> Begun:
    """The component pruned and, once it is read, recovered; `statistics` are those of the original's layers."""
    spec = plan.prepared.components[name]
    stored = plan.prepared.reader(name)
    unread = set(spec.tensors)

    def read(tensor: str) -> torch.Tensor:
        if tensor in unread:  # some steps look at a tensor more than once
            unread.remove(tensor)
            advance(spec.tensors[tensor].size_bytes)
        return stored(tensor)

    begun = Begun(Component(spec, read, statistics, context), Record())
    for step in pruning_steps(plan.steps_of(name)):
        begun.part = step.step.apply(begun.part, step.planned, begun.record)
    return begun


def _write_component(
    plan: Plan,
    begun: Begun,
    partial: Path,
    activations: Mapping[str, LayerRanges],
    statistics: Mapping[str, LayerStatistics],
) -> dict[str, Any]:
    """Runs the component's other steps tensor by tensor into its file or graphs; its entry in the manifest."""
    name, record = begun.part.spec.name, begun.record
    part = replace(begun.part, statistics=statistics)
    for step in later_steps(plan.steps_of(name)):
        part = step.step.apply(part, step.planned, record)
    if plan.recipe.target == "onnx":
        from sdcompress.backends.onnx.export import write_component

        export = plan.steps_of(name)[-1]
        assert isinstance(export.step, Export)
        scale = vae_scale(plan.prepared.components)
        graphs = write_component(part, export.step, export.planned.spec.config, partial, activations, scale)
        record.layers = {
            layer: entry | ({"activations": "int8"} if layer in activations else {})
            for layer, entry in record.layers.items()
        }
        return _component_entry(plan, name, record) | {"graphs": graphs}
    folder = _emptied(partial / name)
    as_it_is = not plan.steps_of(name) and quantized_as(plan.source.components[name]) is not None
    if not (as_it_is and copy_component(plan.source, name, folder)):
        write_safetensors(part, folder)
    return _component_entry(plan, name, record)


def write_safetensors(part: Component, folder: Path) -> None:
    layout = {tensor: (spec.dtype, spec.shape) for tensor, spec in part.spec.tensors.items()}
    with StreamWriter(folder / weights_file(part.spec), layout, {"format": "pt"}) as writer:
        for tensor, spec in part.spec.tensors.items():
            writer.write(tensor, _as_bytes(part.read(tensor), spec, f"{part.spec.name}.{tensor}"))
    write_json(folder / "config.json", dict(part.spec.config))


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed in this component
    folder.mkdir()
    return folder


def _as_bytes(tensor: torch.Tensor, spec: TensorSpec, name: str) -> memoryview:
    import torch

    from sdcompress.files.torch_tensors import TORCH_DTYPE

    if tuple(tensor.shape) != spec.shape or tensor.dtype != TORCH_DTYPE[spec.dtype]:
        raise InternalError(f"{name}: planned as {spec.dtype} {spec.shape}, computed as {tensor.dtype} {tensor.shape}")
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _component_entry(plan: Plan, name: str, record: Record) -> dict[str, Any]:
    before, after = plan.source.components[name], plan.after(name)
    outcomes: dict[str, LayerOutcome] = {}
    for step in plan.steps_of(name):
        outcomes |= {outcome.layer: outcome for outcome in step.planned.layers if outcome.kind not in ("norm", "other")}
    layers = {
        layer: {"kind": outcome.kind, "parameters": outcome.parameters}
        | (record.layers.get(layer) or {"format": None, "reason": outcome.reason})
        | ({"sparsity": record.sparsity[layer]} if layer in record.sparsity else {})
        for layer, outcome in outcomes.items()
    }
    return {
        "class_name": after.class_name,
        "library": after.library,
        "steps": [{step.step.kind: step.step.model_dump(mode="json")} for step in plan.steps_of(name)],
        "parameters": {"original": before.parameters, "compressed": after.parameters},
        "weights_bytes": {"original": before.weights_bytes, "compressed": after.weights_bytes},
        "bits_per_weight": after.bits_per_weight,
        # Stored tensors that stand for another number of parameters than they have elements.
        "parameters_of_packed": {
            tensor: spec.parameters
            for tensor, spec in after.tensors.items()
            if spec.parameters != math.prod(spec.shape)
        },
        "layers": layers,
        **record.facts,
    }


def _copy_files(plan: Plan, partial: Path) -> None:
    """Copies what no step touches; a component's config.json is written with its weights."""
    written = {Path(name) / "config.json" for name in plan.source.components}
    for relative in plan.prepared.other_files:
        if relative not in written:
            plan.prepared.copy_file(relative, partial / relative)


def _manifest(plan: Plan, components: dict[str, Any]) -> dict[str, Any]:
    source = plan.source
    return {
        "schema_version": MANIFEST_SCHEMA,
        "sdcompress": __version__,
        "source": {
            "name": source.name,
            "kind": source.kind,
            "hub_id": source.hub_id,
            **({"options": source.given_options} if source.given_options else {}),
        },
        "recipe": plan.recipe.model_dump(mode="json"),
        "pipeline_class": source.pipeline_class,
        "versions": {"python": platform.python_version(), **installed_versions()},
        "components": {name: components[name] for name in source.components},
    }
