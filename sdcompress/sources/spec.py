"""What a component is without its weights: tensors with shapes and dtypes, grouped into layers of a kind."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcompress.files.safetensors_file import DTYPE_BYTES

KINDS = ("linear", "conv1x1", "conv3x3", "conv", "embedding", "norm", "other")
# Codes of less than a byte: ONNX has the 4-bit ones, safetensors files none (backends/torch/packaging.py packs them).
SUB_BYTE_BITS = {"I4": 4, "I2": 2, "I3": 3, "I5": 5, "I6": 6, "U2": 2, "U3": 3, "U4": 4, "U5": 5, "U6": 6}
CONVOLUTIONS = frozenset({"conv1x1", "conv3x3", "conv"})

# Modules whose two-dimensional weight is a lookup table. Names as in diffusers and transformers.
_EMBEDDING = re.compile(
    r"(^|\.)(token_embedding|position_embedding|embed_tokens|shared|relative_attention_bias|"
    r"class_embedding|embedding_table|word_embeddings|position_embeddings|token_type_embeddings)$"
)


@dataclass(frozen=True)
class TensorSpec:
    """One stored tensor; `parameters` counts the model parameters it stands for (scales and buffers: 0)."""

    shape: tuple[int, ...]
    dtype: str  # safetensors' names: F16, BF16, F32, I8, U8, ...; for unpacked codes also those of SUB_BYTE_BITS
    parameters: int

    @property
    def size_bytes(self) -> int:
        count = math.prod(self.shape)
        if self.dtype in SUB_BYTE_BITS:
            return -(-count * SUB_BYTE_BITS[self.dtype] // 8)
        return count * DTYPE_BYTES[self.dtype]


def parameter(shape: tuple[int, ...], dtype: str) -> TensorSpec:
    """The spec of a plain, unquantized parameter."""
    return TensorSpec(shape, dtype, math.prod(shape))


@dataclass(frozen=True)
class ComponentSpec:
    """One component of a pipeline: its class, its config.json and every tensor it stores."""

    name: str
    library: str
    class_name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSpec]
    pipeline_class: str = ""  # of the pipeline it belongs to, which settles what it is given

    @property
    def parameters(self) -> int:
        return sum(tensor.parameters for tensor in self.tensors.values())

    @property
    def weights_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, scales and all, per model parameter over the whole component."""
        return 8 * self.weights_bytes / self.parameters if self.parameters else 0.0

    def replace(self, **changes: Any) -> ComponentSpec:
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Layer:
    """A module that owns parameters: `weight` and `bias` are tensor names (None where it has none)."""

    name: str
    kind: str
    parameters: int
    weight: str | None
    shape: tuple[int, ...]  # of the weight


def layers_of(spec: ComponentSpec) -> tuple[Layer, ...]:
    """The component's modules that own parameters, in the order of their tensors.

    A bias counts with its module's kind; a bare parameter (`scale_shift_table`, `concept_embeds`) is a layer of
    kind `other` under its own name. A quantized module's tensors (`codes`, `scale`, ...) are no plain weight and
    also count as `other`.
    """
    groups: dict[str, list[str]] = {}
    for name in spec.tensors:
        module, _, leaf = name.rpartition(".")
        plain = leaf in ("weight", "bias") and f"{module}.weight" in spec.tensors
        groups.setdefault(module if plain else name, []).append(name)
    layers = []
    for module, names in groups.items():
        weight = f"{module}.weight"
        owns = weight in names
        shape = spec.tensors[weight if owns else names[0]].shape
        count = sum(spec.tensors[name].parameters for name in names)
        kind = _kind(module, spec.tensors[weight]) if owns else "other"
        layers.append(Layer(module, kind, count, weight if owns else None, shape))
    return tuple(layers)


def _kind(module: str, weight: TensorSpec) -> str:
    if weight.parameters != math.prod(weight.shape):
        return "other"  # packed codes
    if len(weight.shape) == 4:
        kernel = weight.shape[2:]
        return {(1, 1): "conv1x1", (3, 3): "conv3x3"}.get(kernel, "conv")
    if len(weight.shape) in (3, 5):
        return "conv"
    if len(weight.shape) == 2:
        return "embedding" if _EMBEDDING.search(module) else "linear"
    return "norm"


def parameters_by_kind(spec: ComponentSpec) -> dict[str, int]:
    """Kind -> parameters of the weights of that kind; the values add up to the component's parameters.

    Biases of linear layers and convolutions are no weight that could be quantized: they count as `other`.
    """
    counts = dict.fromkeys(KINDS, 0)
    for layer in layers_of(spec):
        weight = spec.tensors[layer.weight].parameters if layer.weight and layer.kind != "norm" else layer.parameters
        counts[layer.kind] += weight
        counts["other"] += layer.parameters - weight
    return counts
