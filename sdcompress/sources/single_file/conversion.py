"""A component's tensors as ranges of bytes of a checkpoint in another layout: nothing is read, nothing copied."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sdcompress.files.safetensors_file import DTYPE_BYTES, TensorRange
from sdcompress.sources.single_file.layouts import Part
from sdcompress.sources.single_file.pieces import Piece
from sdcompress.sources.source import is_buffer
from sdcompress.sources.spec import ComponentSpec

Ranges = Mapping[str, TensorRange]


@dataclass(frozen=True)
class Found:
    """A component's tensors in a checkpoint, the names they have there, and what is wrong with the first bad one."""

    ranges: dict[str, TensorRange]
    names: frozenset[str]
    problem: str | None = None


def find_component(spec: ComponentSpec, part: Part, checkpoint: Ranges) -> Found | None:
    """Where the tensors of `spec` lie in the checkpoint; None when the checkpoint has nothing of the component."""
    candidates = [_find(spec, part, prefix, checkpoint) for prefix in part.prefixes]
    best = max(candidates, key=lambda found: len(found.names))
    return best if best.names else None


def _find(spec: ComponentSpec, part: Part, prefix: str, checkpoint: Ranges) -> Found:
    ranges: dict[str, TensorRange] = {}
    names: set[str] = set()
    problem = None
    for tensor, wanted in spec.tensors.items():
        piece = part.naming(tensor, spec.config)
        where = None
        if piece is not None:
            name, where = _look_up(prefix, piece.name, checkpoint)
            names |= {name} & set(checkpoint)
        if piece is None or where is None:
            if not is_buffer(tensor):
                problem = problem or (f"has no {name}" if piece else f"{tensor} has no place in this layout")
            continue
        cut = _cut(where, piece, wanted.shape)
        if cut is None:
            problem = problem or f"{name} is {list(where.shape)}, which does not give {tensor} {list(wanted.shape)}"
        else:
            ranges[tensor] = cut
    return Found(ranges, frozenset(names), problem)


def _look_up(prefix: str, name: str, checkpoint: Ranges) -> tuple[str, TensorRange | None]:
    """The tensor's name in the file and its range. Some text encoders were saved without their outermost module."""
    for tried in (prefix + name, prefix + name.removeprefix("text_model."), f"{prefix}text_model.{name}"):
        if tried in checkpoint:
            return tried, checkpoint[tried]
    return prefix + name, None


def _cut(where: TensorRange, piece: Piece, shape: tuple[int, ...]) -> TensorRange | None:
    """The piece of the tensor as one of that shape; None where the numbers do not agree."""
    if not where.shape or where.shape[0] % piece.of:
        return None
    rows = where.shape[0] // piece.of
    row_bytes = math.prod(where.shape[1:]) * DTYPE_BYTES[where.dtype]
    found = (rows * (piece.last - piece.first), *where.shape[1:])
    if piece.arrangement == "transposed":
        found = found[::-1]
    if _essential(found) != _essential(shape):  # a 1x1 convolution is the linear layer of the same weights
        return None
    return replace(
        where,
        shape=shape,
        offset=where.offset + rows * piece.first * row_bytes,
        size_bytes=found[0] * row_bytes if piece.arrangement != "transposed" else where.size_bytes,
        arrangement=piece.arrangement,
    )


def _essential(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
