"""Writing a component as ONNX graphs: tracing, graph passes, packaging, and writing one tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from sdcompress.backends.onnx.graph_cache import CachedGraph
from sdcompress.backends.onnx.graph_tracing import GraphTracing
from sdcompress.backends.onnx.packaging import Packager
from sdcompress.backends.onnx.passes import run_passes, standard_passes
from sdcompress.backends.onnx.settings import ExportSettings, compute_dtype, part_sizes, quantized_layers
from sdcompress.errors import InternalError, SdcompressError
from sdcompress.families.onnx_parts import fix_axes, onnx_parts
from sdcompress.files.artifact import write_json
from sdcompress.quant.activations import LayerRanges
from sdcompress.quant.registry import from_label
from sdcompress.sources.pruned_config import without_quantization

if TYPE_CHECKING:
    import torch

    from sdcompress.backends.component import Component
    from sdcompress.sources.spec import ComponentSpec

MODEL_NAME = "model.onnx"
DATA_NAME = "model.onnx_data"
OPSET = 21  # has blocked DequantizeLinear; the passes rewrite what the exporter's opset 23 adds
IR_VERSION = 10
METADATA = "sdcompress"
IN_GRAPH_BYTES = 256  # smaller tensors are in the graph's own file
_IR_DTYPE = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


def write_component(
    part: Component,
    settings: ExportSettings,
    config: Mapping[str, Any],
    to: Path,
    ranges: Mapping[str, LayerRanges],
    vae_scale: int,
    tracing: GraphTracing,
) -> dict[str, Any]:
    """Write the component's graphs into folders of `to`; return folder -> the results of the graph passes.

    Args:
        config: the component's config, which is written beside each graph.
        ranges: layer -> ranges, for the layers whose activations are quantized.
        vae_scale: pixels per latent along an edge.
        tracing: returns traced graphs.

    Raises:
        InternalError: the graphs are not what was planned.
    """
    done: dict[str, Any] = {}
    used: set[str] = set()
    for graph in graphs_of(part.spec, settings, vae_scale):
        folder = to / graph.part.folder
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed in this component
        folder.mkdir()
        model = tracing.graph(graph)
        passes = run_passes(model, standard_passes(settings.attention), f"{part.spec.name}.{graph.part.folder}")
        _package(model, graph, part, settings, ranges)
        parameters = json.loads(model.metadata_props[METADATA])["parameters"]
        used |= set(parameters)
        save(model, folder)
        write_json(folder / "config.json", dict(config))
        done[graph.part.folder] = [asdict(result) for result in passes]
    _check_complete(part, used)
    return done


def save(model: ir.Model, folder: Path) -> None:
    """Write model.onnx and its data, one tensor at a time. Errors of reading tensors are raised as they are."""
    try:
        ir.save(model, folder / MODEL_NAME, external_data=DATA_NAME, size_threshold_bytes=IN_GRAPH_BYTES)
    except ir.serde.SerdeError as error:  # onnx_ir wraps errors of tensors small enough for model.onnx
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, SdcompressError):
            cause = cause.__cause__
        raise cause or error from None


def graphs_of(spec: ComponentSpec, settings: ExportSettings, vae_scale: int) -> tuple[CachedGraph, ...]:
    """Return the graphs of a component, given its spec before the export."""
    plain, compute = unquantized(spec), compute_dtype(spec)
    return tuple(
        CachedGraph(plain, part, fix_axes(part, part_sizes(settings.static_shapes, part, vae_scale)), compute)
        for part in onnx_parts(spec)
    )


def _package(
    model: ir.Model,
    graph: CachedGraph,
    part: Component,
    settings: ExportSettings,
    ranges: Mapping[str, LayerRanges],
) -> None:
    """Give the graph's parameters their values, in place, and make it a model that stock runtimes open."""
    parameters: dict[str, int] = {}
    packager = Packager(
        model=model,
        spec=part.spec,
        formats={layer: from_label(label) for layer, label in quantized_layers(part.spec.config).items()},
        ranges=ranges,
        read=_LayerReader(part.read).read,
        compute=_IR_DTYPE[graph.dtype],
        contrib=settings.attention == "fused",
        parameters=parameters,
    )
    packager.package()
    clean_up_after(model)
    model.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION
    model.graph.name = graph.part.folder
    model.producer_name, model.producer_version = "sdcompress", ""
    model.metadata_props.clear()
    held = {name: count for name, count in sorted(parameters.items()) if name in model.graph.initializers}
    model.metadata_props[METADATA] = json.dumps({"parameters": held})


def unquantized(spec: ComponentSpec) -> ComponentSpec:
    """Return the component without quantization: weights instead of codes and scales, as its class has them."""
    layers = quantized_layers(spec.config)
    tensors = {}
    for name, tensor in spec.tensors.items():
        layer, _, leaf = name.rpartition(".")
        if layer in layers and leaf in ("codes", "scale"):
            if leaf == "codes":
                tensors[f"{layer}.weight"] = tensor
        else:
            tensors[name] = tensor
    return spec.replace(tensors=tensors, config=without_quantization(spec.config))


def clean_up_after(model: ir.Model) -> None:
    """Remove unused nodes, and sort the rest so that each stands behind its inputs."""
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)


def _check_complete(part: Component, used: set[str]) -> None:
    """Raise InternalError if a parameter of the component is in no graph."""
    stems = {name.partition("[")[0].removesuffix("_codes") for name in used}
    lost = [name for name, tensor in part.spec.tensors.items() if tensor.parameters and name not in stems]
    if lost:
        raise InternalError(f"{part.spec.name}.{lost[0]}: is in none of the exported graphs (of {len(lost)} such)")


class _LayerReader:
    """Reads a component's tensors and keeps those of the last layer, since a graph may hold a weight in pieces.

    It also keeps scales that are too small for the external data. They go into the graph's own file, which is written
    last, and reading them again would quantize the layer again.
    """

    def __init__(self, read: Callable[[str], torch.Tensor]):
        self._read, self._layer = read, ""
        self._tensors: dict[str, torch.Tensor] = {}
        self._small: dict[str, torch.Tensor] = {}

    def read(self, name: str) -> torch.Tensor:
        layer = name.rpartition(".")[0]
        if name in self._small:
            return self._small[name]
        if layer != self._layer:
            self._layer = layer
            self._tensors.clear()
        if name not in self._tensors:
            self._tensors[name] = self._read(name)
        tensor = self._tensors[name]
        if name.endswith(".scale") and tensor.numel() <= IN_GRAPH_BYTES:
            self._small[name] = tensor
        elif name.endswith(".codes"):
            self.read(f"{layer}.scale")
        return tensor
