"""Traced graphs kept on disk, so that another export of the same model need not trace it again.

A graph without weights has a few MB; tracing a full-size UNet takes half a minute to a minute. The folder is `graphs`
in sdcompress's cache folder (sdcompress/files/cache.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from sdcompress.backends.onnx.cleanup import parameters_as_inputs
from sdcompress.environment import installed_versions
from sdcompress.families.architecture import OnnxInput, OnnxPart
from sdcompress.files.cache import cache_folder, replacing
from sdcompress.sources.spec import ComponentSpec
from sdcompress.version import __version__

if TYPE_CHECKING:
    import onnx_ir as ir

_TRACERS = ("torch", "diffusers", "transformers", "onnxscript", "onnx")


def cached_graph(
    spec: ComponentSpec, part: OnnxPart, inputs: tuple[OnnxInput, ...], dtype: str, make: Callable[[], ir.Model]
) -> ir.Model:
    """Return the graph from the cache, or the one that `make` traces; parameters are initializers without values."""
    import onnx_ir as ir

    file = cache_folder() / "graphs" / f"{_key(spec, part, inputs, dtype)}.onnx"
    if not file.is_file():
        model = make()
        with parameters_as_inputs(model) as names:
            model.metadata_props["parameters"] = json.dumps(names)
            with replacing(file) as unfinished:
                ir.save(model, unfinished, format="protobuf")
    model = ir.load(file)
    stored = set(json.loads(model.metadata_props.pop("parameters")))
    parameters = [value for value in model.graph.inputs if value.name in stored]
    others = [value for value in model.graph.inputs if value.name not in stored]
    del model.graph.inputs[:]
    model.graph.inputs.extend(others)
    for value in parameters:
        model.graph.initializers.add(value)
    return model


def _key(spec: ComponentSpec, part: OnnxPart, inputs: tuple[OnnxInput, ...], dtype: str) -> str:
    """Return a key made of everything that the traced graph depends on."""
    versions = {name: version for name, version in installed_versions().items() if name in _TRACERS}
    tensors = sorted((name, list(tensor.shape)) for name, tensor in spec.tensors.items())
    facts = [__version__, versions, spec.class_name, dict(spec.config), part.folder, dtype,
             [[each.name, each.shape, each.dtype] for each in inputs], tensors]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
