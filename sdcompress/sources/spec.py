"""A component without its weights: its tensors' shapes and dtypes, and its layers."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcompress.files.safetensors_file import DTYPE_BYTES

KINDS = ("linear", "conv1x1", "conv3x3", "conv", "embedding", "norm", "other")
# Bits of codes smaller than a byte. ONNX has those of 4 bits, safetensors has none (backends/torch/packaging.py packs
# them).
SUB_BYTE_BITS = {"I4": 4, "I2": 2, "I3": 3, "I5": 5, "I6": 6, "U2": 2, "U3": 3, "U4": 4, "U5": 5, "U6": 6}
CONVOLUTIONS = frozenset({"conv1x1", "conv3x3", "conv"})

# Modules of diffusers and transformers whose matrix is a lookup table.
_EMBEDDING = re.compile(
    r"(^|\.)(token_embedding|position_embedding|embed_tokens|shared|relative_attention_bias|"
    r"class_embedding|embedding_table|word_embeddings|position_embeddings|token_type_embeddings)$"
)


@dataclass(frozen=True)
class TensorSpec:
    """One stored tensor.

    Attributes:
        shape: its shape.
        dtype: safetensors' name (`F16`, `BF16`, `I8`, ...), or one of SUB_BYTE_BITS for codes that are not packed.
        parameters: number of the model's parameters that it stands for; 0 for scales and buffers.
    """

    shape: tuple[int, ...]
    dtype: str
    parameters: int

    @property
    def size_bytes(self) -> int:
        """Size of the values in bytes."""
        count = math.prod(self.shape)
        if self.dtype in SUB_BYTE_BITS:
            return -(-count * SUB_BYTE_BITS[self.dtype] // 8)
        return count * DTYPE_BYTES[self.dtype]


def parameter(shape: tuple[int, ...], dtype: str) -> TensorSpec:
    """Return the spec of a parameter that is not quantized.

    Examples:
        >>> parameter((320, 4, 3, 3), "F16").size_bytes
        23040
    """
    return TensorSpec(shape, dtype, math.prod(shape))


@dataclass(frozen=True)
class ComponentSpec:
    """One component of a pipeline.

    Attributes:
        name: its name in the pipeline, such as `unet`.
        library: library of its class, as in model_index.json.
        class_name: its class.
        config: content of its config.json.
        tensors: name -> spec of every tensor it stores.
        pipeline_class: class of its pipeline, by which its inputs are known.
    """

    name: str
    library: str
    class_name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSpec]
    pipeline_class: str = ""

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(tensor.parameters for tensor in self.tensors.values())

    @property
    def weights_bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, with those of scales, per parameter of the whole component."""
        return 8 * self.weights_bytes / self.parameters if self.parameters else 0.0

    def replace(self, **changes: Any) -> ComponentSpec:
        """Return a copy with these fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own.

    Attributes:
        name: the module's name.
        kind: one of KINDS.
        parameters: number of its parameters.
        weight: name of its weight; None if it has none.
        shape: shape of the weight, or of its first tensor.
    """

    name: str
    kind: str
    parameters: int
    weight: str | None
    shape: tuple[int, ...]


def layers_of(spec: ComponentSpec) -> tuple[Layer, ...]:
    """Return the component's modules with parameters of their own, in the order of their tensors.

    A parameter outside of any layer, such as `scale_shift_table`, is a layer of kind `other` under its own name, and so
    is each tensor of a quantized layer, such as `codes` and `scale`.

    Examples:
        >>> from sdcompress import open_source
        >>> layers_of(open_source("sd15").components["unet"])[0]
        Layer(name='conv_in', kind='conv3x3', parameters=11840, weight='conv_in.weight', shape=(320, 4, 3, 3))
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
    """Return kind of layer -> number of parameters. The values add up to the component's parameters.

    Biases of linear layers and convolutions are not quantized, so they count as `other`.
    """
    counts = dict.fromkeys(KINDS, 0)
    for layer in layers_of(spec):
        weight = spec.tensors[layer.weight].parameters if layer.weight and layer.kind != "norm" else layer.parameters
        counts[layer.kind] += weight
        counts["other"] += layer.parameters - weight
    return counts
