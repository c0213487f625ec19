"""nearest, search and weighted-search: what they promise, on every format of our own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdcompress.quant.grid_format import GridFormat
from sdcompress.quant.registry import known_formats
from sdcompress.quant.rounding.nearest import Nearest
from sdcompress.quant.rounding.search import Search, WeightedSearch
from sdcompress.quant.statistics import LayerStatistics

FORMATS = sorted(name for name, kind in known_formats().items() if kind.roundings is None or "gptq" in kind.roundings)
SHAPES = [(24, 72), (12, 40, 3, 3), (5, 7, 1, 2)]
# Losses are float32 sums of some thousand squares: a relative error of 1e-5 at most.
CLOSE = 1 + 1e-5


def made(name: str, scale_bits: int = 16) -> GridFormat:
    kind: Any = known_formats()[name]
    return kind(None, scale_bits) if "scale_bits" in kind.options else kind(4)


def random_weight(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.rand(shape[:1], generator=generator).view(
        -1, *[1] * (len(shape) - 1)
    )


def statistics_of(columns: int) -> LayerStatistics:
    rows = torch.randn(500, columns, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 1, columns)
    return LayerStatistics(500, rows.mean(0), (rows.T @ rows / 500,))


def loss(weight: torch.Tensor, tensor: Any, importance: torch.Tensor | None = None) -> float:
    errors = (tensor.dequantize(torch.float32).double() - weight.double()).flatten(1).square()
    return float((errors if importance is None else errors * importance.double()).sum())


def test_nearest_is_the_formats_own() -> None:
    weight = random_weight((8, 64))
    for name in FORMATS:
        one, other = Nearest().quantize(weight, made(name), None).parts(), made(name).quantize(weight).parts()
        assert all(torch.equal(one[part], other[part]) for part in other)


@pytest.mark.parametrize("scale_bits", [8, 16])
@pytest.mark.parametrize("name", FORMATS)
def test_a_search_never_loses_more_than_nearest(name: str, scale_bits: int) -> None:
    fmt = made(name, scale_bits)
    for shape in SHAPES:
        weight = random_weight(shape)
        statistics = statistics_of(weight[0].numel())
        nearest = fmt.quantize(weight)
        assert loss(weight, Search().quantize(weight, fmt, None)) <= loss(weight, nearest) * CLOSE
        weighted = WeightedSearch().quantize(weight, fmt, statistics)
        importance = statistics.second_moment
        assert loss(weight, weighted, importance) <= loss(weight, nearest, importance) * CLOSE


def test_searches_gain_at_low_bits() -> None:
    """At 2 bits a third of the error or more: the range of a normal distribution's 32 values is twice what is best."""
    weight = random_weight((64, 256))
    for name in ("int2", "uint2"):
        fmt = made(name)
        assert loss(weight, Search().quantize(weight, fmt, None)) < 0.7 * loss(weight, fmt.quantize(weight))


@pytest.mark.parametrize("name", FORMATS)
def test_stored_parts_are_as_planned(name: str) -> None:
    from sdcompress.sources.spec import parameter

    weight = random_weight((12, 40, 3, 3))
    for scale_bits in (8, 16):
        fmt = made(name, scale_bits)
        parts = Search().quantize(weight, fmt, None).parts()
        specs = fmt.stored(parameter(tuple(weight.shape), "F32"))
        assert list(parts) == list(specs)
        assert [tuple(part.shape) for part in parts.values()] == [spec.shape for spec in specs.values()]
        dtypes = {torch.float16: "F16", torch.uint8: "U8", torch.int8: "I8"}
        assert all(dtypes[parts[part].dtype] == specs[part].dtype for part in parts if part != "codes")


@pytest.mark.parametrize("name", ["int3", "uint4", "normal-float4"])
def test_chunks_do_not_change_the_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, fmt = random_weight((20, 48)), made(name, 8)
    whole = Search().quantize(weight, fmt, None).parts()
    monkeypatch.setattr("sdcompress.quant.grid_format.PIECE", 150)
    pieces = Search().quantize(weight, fmt, None).parts()
    assert all(torch.equal(whole[part], pieces[part]) for part in whole)


def test_what_cannot_be_done_is_said() -> None:
    weight = random_weight((4, 32))
    with pytest.raises(ValueError, match="needs the statistics"):
        WeightedSearch().quantize(weight, made("int4"), None)
    with pytest.raises(ValueError, match="of 31 columns, and the weight has 32"):
        WeightedSearch().quantize(weight, made("int4"), statistics_of(31))
    weight[0, 0] = torch.nan
    for name in FORMATS:
        with pytest.raises(ValueError, match="1 of 128 values are NaN or infinite"):
            Search().quantize(weight, made(name), None)
