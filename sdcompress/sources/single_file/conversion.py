"""A component's tensors as ranges of bytes of a checkpoint in another layout. Nothing is read or copied."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sdcompress.files.safetensors_file import DTYPE_BYTES, TensorRange
from sdcompress.sources.single_file.layouts import ComponentLayout
from sdcompress.sources.single_file.tensor_slice import TensorSlice
from sdcompress.sources.source import is_buffer
from sdcompress.sources.spec import ComponentSpec

Ranges = Mapping[str, TensorRange]


@dataclass(frozen=True)
class FoundComponent:
    """A component's tensors in a checkpoint.

    Attributes:
        ranges: tensor, by diffusers' name -> where it is stored.
        names: the names of these tensors in the checkpoint.
        problem: what is wrong with the first tensor that is missing or has another shape.
    """

    ranges: dict[str, TensorRange]
    names: frozenset[str]
    problem: str | None = None


def find_component(spec: ComponentSpec, layout: ComponentLayout, checkpoint: Ranges) -> FoundComponent | None:
    """Return where a checkpoint stores the tensors of a component; None if it has none of them.

    Args:
        spec: the component, with the names and shapes of diffusers.
        layout: how the checkpoint stores it.
        checkpoint: tensor -> where it is stored.
    """
    candidates = [_find(spec, layout, prefix, checkpoint) for prefix in layout.prefixes]
    best = max(candidates, key=lambda found: len(found.names))
    return best if best.names else None


def _find(spec: ComponentSpec, layout: ComponentLayout, prefix: str, checkpoint: Ranges) -> FoundComponent:
    ranges: dict[str, TensorRange] = {}
    names: set[str] = set()
    problem = None
    for tensor, wanted in spec.tensors.items():
        located = layout.locate(tensor, spec.config)
        where = None
        if located is not None:
            name, where = _look_up(prefix, located.name, checkpoint)
            names |= {name} & set(checkpoint)
        if located is None or where is None:
            if not is_buffer(tensor):
                problem = problem or (f"has no {name}" if located else f"{tensor} has no place in this layout")
            continue
        part = _slice(where, located, wanted.shape)
        if part is None:
            problem = problem or f"{name} is {list(where.shape)}, which does not give {tensor} {list(wanted.shape)}"
        else:
            ranges[tensor] = part
    return FoundComponent(ranges, frozenset(names), problem)


def _look_up(prefix: str, name: str, checkpoint: Ranges) -> tuple[str, TensorRange | None]:
    """Return the tensor's name in the checkpoint and its range. Some text encoders lack the level `text_model`."""
    for tried in (prefix + name, prefix + name.removeprefix("text_model."), f"{prefix}text_model.{name}"):
        if tried in checkpoint:
            return tried, checkpoint[tried]
    return prefix + name, None


def _slice(where: TensorRange, located: TensorSlice, shape: tuple[int, ...]) -> TensorRange | None:
    """Return the range of the slice as a tensor of this shape; None if the slice has another shape."""
    if not where.shape or where.shape[0] % located.of:
        return None
    rows = where.shape[0] // located.of
    row_bytes = math.prod(where.shape[1:]) * DTYPE_BYTES[where.dtype]
    found = (rows * (located.last - located.first), *where.shape[1:])
    size_bytes = found[0] * row_bytes
    if located.arrangement == "transposed":
        found = found[::-1]
    if _without_kernel(found) != _without_kernel(shape):  # a 1x1 convolution has the weights of a linear layer
        return None
    return replace(
        where,
        shape=shape,
        offset=where.offset + rows * located.first * row_bytes,
        size_bytes=size_bytes,
        arrangement=located.arrangement,
    )


def _without_kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
