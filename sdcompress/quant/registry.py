"""The quantization formats and ways of rounding that recipes can name."""

from __future__ import annotations

from functools import cache

from sdcompress.plugins import find_classes
from sdcompress.quant.format import QuantFormat
from sdcompress.quant.rounding import Rounding


@cache
def known_formats() -> dict[str, type[QuantFormat]]:
    """Return format name -> class, for every module of `sdcompress/quant/`."""
    return find_classes("sdcompress.quant", QuantFormat, "name")  # type: ignore[type-abstract]


@cache
def known_roundings() -> dict[str, type[Rounding]]:
    """Return rounding name -> class, for every module of `sdcompress/quant/rounding/`."""
    return find_classes("sdcompress.quant.rounding", Rounding, "name")  # type: ignore[type-abstract]
