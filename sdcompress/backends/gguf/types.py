"""The type of each tensor in a GGUF file, and why it is not the requested one.

GGUF's block formats (Q8_0, Q4_0, ...) cut the last dimension into runs of 32. A convolution's last dimension is its
kernel's width, so blocks cannot hold its weights: we keep them in 16 bits, as stable-diffusion.cpp and ComfyUI do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sdcompress.backends.gguf.layouts import Layout, Rows
from sdcompress.families.registry import architecture_of
from sdcompress.sources.layer_patterns import first_match
from sdcompress.sources.spec import CONVOLUTIONS, ComponentSpec, Layer, TensorSpec, layers_of

# --type -> bits of a weight, for the types that the package `gguf` writes and diffusers reads.
TYPES = {"f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5}
REST = ("f16", "f32")
BLOCK = 32  # weights that share a scale, in all of the block formats
_BYTES_PER_BLOCK = {"f32": 128, "f16": 64, "bf16": 64, "q8_0": 34, "q5_1": 24, "q5_0": 22, "q4_1": 20, "q4_0": 18}

ONE_DIMENSION = "one-dimensional: runtimes compute with it in float32"
CONVOLUTION = "convolution: GGUF's blocks of 32 run along the kernel's width"
NO_LINEAR = "no linear layer's weight: runtimes do not unpack it"
SENSITIVE = "sensitive layer (--no-keep-sensitive quantizes it too)"
ROWS = "its rows are no multiple of 32 weights"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file: its rows and its type, and the reason if that is not the requested type."""

    name: str
    rows: tuple[Rows, ...]
    shape: tuple[int, ...]
    type: str  # a key of TYPES, or f32
    reason: str | None
    parameters: int

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * _BYTES_PER_BLOCK[self.type] // BLOCK


def choose_types(
    spec: ComponentSpec, layout: Layout, wanted: str, rest: str, keep_sensitive: bool
) -> tuple[StoredTensor, ...]:
    """Return all tensors of the file in order.

    Args:
        wanted: the type of the weights, one of TYPES.
        rest: the type of tensors with several dimensions that cannot be in `wanted`, one of REST.
        keep_sensitive: whether types of fewer than 8 bits leave sensitive layers alone.
    """
    layers = {layer.weight: layer for layer in layers_of(spec) if layer.weight is not None}
    patterns = architecture_of(spec.class_name).sensitive if keep_sensitive and TYPES[wanted] < 8 else ()
    stored = []
    for name, rows in layout.tensors.items():
        first = spec.tensors[rows[0].tensor].shape
        shape = (sum(piece.stop - piece.start for piece in rows), *first[1:]) if first else (1,)
        reason = _reason(shape, [layers.get(piece.tensor) for piece in rows], wanted, patterns)
        kind = "f32" if reason == ONE_DIMENSION else rest if reason else wanted
        stored.append(StoredTensor(name, rows, shape, kind, reason, _parameters(spec.tensors, rows)))
    return tuple(stored)


def _reason(shape: tuple[int, ...], layers: list[Layer | None], wanted: str, patterns: tuple[str, ...]) -> str | None:
    if len(shape) < 2:
        return ONE_DIMENSION
    if wanted == "f16":
        return None
    if any(layer is not None and layer.kind in CONVOLUTIONS for layer in layers):
        return CONVOLUTION
    if any(layer is None or layer.kind != "linear" for layer in layers):
        return NO_LINEAR
    if any(layer is not None and first_match(patterns, layer.name) for layer in layers):
        return SENSITIVE
    return ROWS if wanted != "bf16" and shape[-1] % BLOCK else None


def _parameters(tensors: Mapping[str, TensorSpec], rows: tuple[Rows, ...]) -> int:
    """Return the number of model parameters in these rows; buffers have none."""
    count = 0
    for piece in rows:
        tensor = tensors[piece.tensor]
        count += tensor.parameters * (piece.stop - piece.start) // (tensor.shape[0] if tensor.shape else 1)
    return count
