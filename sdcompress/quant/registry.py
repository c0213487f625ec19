"""The quantization formats and ways of rounding that recipes can name."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from sdcompress.errors import InternalError
from sdcompress.plugins import find_classes, find_constants
from sdcompress.quant.format import OPTIONS, QuantFormat
from sdcompress.quant.rounding import Rounding


@cache
def known_formats() -> dict[str, QuantFormat]:
    """Return format name -> format with no option set, from every module of `sdcompress/quant/formats/`, by name.

    A module offers formats in a tuple `FORMATS`, or as a subclass of QuantFormat that sets `name` and `bits`.

    Raises:
        InternalError: two formats have the same name.

    Examples:
        >>> [name for name, fmt in known_formats().items() if fmt.bits == 2]
        ['codebook2', 'int2', 'uint2']
    """
    offered = [fmt for formats in find_constants("sdcompress.quant.formats", "FORMATS").values() for fmt in formats]
    classes = find_classes("sdcompress.quant.formats", QuantFormat, "name")  # type: ignore[type-abstract]
    offered += [found(name, found.bits) for name, found in classes.items()]  # type: ignore[misc]
    formats: dict[str, QuantFormat] = {}
    for fmt in sorted(offered, key=lambda fmt: fmt.name):
        if fmt.name in formats:
            raise InternalError(f"two formats are called {fmt.name}: {formats[fmt.name]} and {fmt}")
        formats[fmt.name] = fmt
    return formats


@cache
def known_roundings() -> dict[str, type[Rounding]]:
    """Return rounding name -> class, from every module of `sdcompress/quant/rounding/`."""
    return find_classes("sdcompress.quant.rounding", Rounding, "name")  # type: ignore[type-abstract]


def from_label(label: str) -> QuantFormat:
    """Return the format that a label stands for.

    Raises:
        KeyError: no format has that name.
        ValueError: an option is unknown.

    Examples:
        >>> import torch
        >>> tensor = from_label("int4/2").quantize(torch.tensor([[0.7, -0.1, 3.0, 1.0]]))
        >>> tensor.codes.tolist(), tensor.scale.shape
        ([[7, -1, 7, 2]], torch.Size([1, 2]))
        >>> tensor.dequantize(torch.float16)
        tensor([[ 0.7002, -0.1000,  3.0000,  0.8574]], dtype=torch.float16)
    """
    name, *options = label.split("+")
    name, _, group = name.partition("/")
    changes: dict[str, Any] = {"group_size": int(group) if group else None}
    for text in options:
        word = text.rstrip("0123456789")
        option = next((option for option, said in OPTIONS.items() if said == word), None)
        if option is None:
            raise ValueError(f"{label}: no option {text!r}")
        changes[option] = int(text[len(word) :]) if text != word else True
    return replace(known_formats()[name], **changes)
