"""Writing one component of an artifact, and its entry in the manifest."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdcompress.backends.component import Component, StepResults
from sdcompress.errors import InternalError
from sdcompress.execution.pruning import later_steps
from sdcompress.families.onnx_parts import vae_scale
from sdcompress.files.artifact import write_json
from sdcompress.files.manifest import BeforeAndAfter, ComponentEntry, LayerEntry
from sdcompress.files.safetensors_file import StreamWriter
from sdcompress.planning.plan import Plan
from sdcompress.planning.steps import LayerOutcome
from sdcompress.planning.steps.export import Export
from sdcompress.sources.quantized_source import copy_component, quantized_as
from sdcompress.sources.spec import ComponentSpec, TensorSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.backends.onnx.graph_tracing import GraphTracing
    from sdcompress.quant.activations import LayerRanges

_LIBRARY_WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors"}


def write_component(
    plan: Plan,
    component: Component,
    to: Path,
    ranges: Mapping[str, LayerRanges],
    tracing: GraphTracing,
) -> ComponentEntry:
    """Apply the component's steps after pruning and write it, tensor by tensor; return its entry in the manifest.

    Args:
        component: the component after its pruning steps, with the statistics of its layers.
        to: the folder of the artifact.
        ranges: layer -> calibrated ranges, for the layers whose activations are rounded.
        tracing: returns the traced graphs, for ONNX.
    """
    name = component.spec.name
    for step in later_steps(plan.steps_of(name)):
        component = step.step.apply(component, step.planned)
    results = component.results
    if plan.recipe.target == "onnx":
        graphs = _write_graphs(plan, component, to, ranges, tracing)
        for layer in results.layers.keys() & ranges.keys():
            results.layers[layer]["activations"] = "int8"
        results.facts["graphs"] = graphs
        return _entry(plan, name, results)
    folder = to / name
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed in this component
    folder.mkdir()
    as_it_is = not plan.steps_of(name) and quantized_as(plan.source.components[name]) is not None
    if not (as_it_is and copy_component(plan.source, name, folder)):
        write_safetensors(component, folder)
    return _entry(plan, name, results)


def write_safetensors(component: Component, folder: Path) -> None:
    """Write the component's tensors and config.json as its library saves them."""
    layout = {tensor: (spec.dtype, spec.shape) for tensor, spec in component.spec.tensors.items()}
    with StreamWriter(folder / weights_file(component.spec), layout, {"format": "pt"}) as writer:
        for tensor, spec in component.spec.tensors.items():
            writer.write(tensor, _as_bytes(component.read(tensor), spec, f"{component.spec.name}.{tensor}"))
    write_json(folder / "config.json", dict(component.spec.config))


def weights_file(component: ComponentSpec) -> str:
    """Return the name of the file in which the component's library saves its weights."""
    return _LIBRARY_WEIGHTS.get(component.library, "model.safetensors")


def _write_graphs(
    plan: Plan, component: Component, to: Path, ranges: Mapping[str, LayerRanges], tracing: GraphTracing
) -> dict[str, list[dict[str, object]]]:
    from sdcompress.backends.onnx.export import write_component as write_graphs

    planned = plan.steps_of(component.spec.name)[-1]
    if not isinstance(planned.step, Export):
        raise InternalError(f"{component.spec.name}: planned for ONNX without an export step")
    scale = vae_scale(plan.modified_source.components)
    return write_graphs(component, planned.step, planned.planned.spec.config, to, ranges, scale, tracing)


def _as_bytes(tensor: torch.Tensor, spec: TensorSpec, name: str) -> memoryview:
    import torch

    from sdcompress.files.torch_tensors import TORCH_DTYPE

    if tuple(tensor.shape) != spec.shape or tensor.dtype != TORCH_DTYPE[spec.dtype]:
        raise InternalError(f"{name}: planned as {spec.dtype} {spec.shape}, computed as {tensor.dtype} {tensor.shape}")
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _entry(plan: Plan, name: str, results: StepResults) -> ComponentEntry:
    before, after = plan.source.components[name], plan.after(name)
    outcomes: dict[str, LayerOutcome] = {}
    for step in plan.steps_of(name):
        outcomes |= {outcome.layer: outcome for outcome in step.planned.layers if outcome.kind not in ("norm", "other")}
    return ComponentEntry(
        class_name=after.class_name,
        library=after.library,
        steps=[{step.step.kind: step.step.model_dump(mode="json")} for step in plan.steps_of(name)],
        parameters=BeforeAndAfter(original=before.parameters, compressed=after.parameters),
        weights_bytes=BeforeAndAfter(original=before.weights_bytes, compressed=after.weights_bytes),
        bits_per_weight=after.bits_per_weight,
        parameters_of_packed={
            tensor: spec.parameters
            for tensor, spec in after.tensors.items()
            if spec.parameters != math.prod(spec.shape)
        },
        layers={layer: _layer_entry(outcome, results) for layer, outcome in outcomes.items()},
        **results.facts,
    )


def _layer_entry(outcome: LayerOutcome, results: StepResults) -> LayerEntry:
    layer = outcome.layer
    found = results.layers.get(layer) or {"format": None, "reason": outcome.reason}
    if layer in results.sparsity:
        found = {**found, "sparsity": results.sparsity[layer]}
    return LayerEntry(kind=outcome.kind, parameters=outcome.parameters, **found)
