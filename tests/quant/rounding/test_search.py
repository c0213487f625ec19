"""nearest, search and weighted-search: what they promise, on every format of our own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_weights import random, statistics_of

from sdcompress.quant.grid_format import GridFormat
from sdcompress.quant.registry import from_label, known_formats
from sdcompress.quant.rounding.nearest import Nearest
from sdcompress.quant.rounding.search import Search, WeightedSearch
from sdcompress.quant.statistics import LayerStatistics
from sdcompress.sources.spec import parameter

FORMATS = sorted(name for name, fmt in known_formats().items() if fmt.roundings is None or "gptq" in fmt.roundings)
LABELS = [f"{name}/4" if "codebook" in name else name + more for name in FORMATS for more in ("", "+scale8")]
SHAPES = [(24, 72), (12, 40, 3, 3), (5, 7, 1, 2)]
# Losses are float32 sums of some thousand squares: a relative error of 1e-5 at most.
CLOSE = 1 + 1e-5


def made(label: str) -> GridFormat:
    fmt = from_label(label)
    assert isinstance(fmt, GridFormat)
    return fmt


def random_weight(shape: tuple[int, ...]) -> torch.Tensor:
    """Rows of different size."""
    size = torch.rand(shape[0], generator=torch.Generator().manual_seed(1))
    return random(*shape) * size.view(-1, *[1] * (len(shape) - 1))


def uneven(columns: int) -> LayerStatistics:
    return statistics_of(random(500, columns, seed=1) * torch.logspace(-2, 1, columns))


def loss(weight: torch.Tensor, tensor: Any, importance: torch.Tensor | None = None) -> float:
    errors = (tensor.dequantize(torch.float32).double() - weight.double()).flatten(1).square()
    return float((errors if importance is None else errors * importance.double()).sum())


def test_nearest_is_the_formats_own() -> None:
    weight = random_weight((8, 64))
    for name in FORMATS:
        one, other = Nearest().quantize(weight, made(name), None).parts(), made(name).quantize(weight).parts()
        assert all(torch.equal(one[part], other[part]) for part in other)


@pytest.mark.parametrize("label", sorted(set(LABELS)))
def test_a_search_never_loses_more_than_nearest_and_stores_what_is_planned(label: str) -> None:
    fmt = made(label)
    for shape in SHAPES:
        weight = random_weight(shape)
        statistics = uneven(weight[0].numel())
        nearest, found = fmt.quantize(weight), Search().quantize(weight, fmt, None)
        assert loss(weight, found) <= loss(weight, nearest) * CLOSE
        weighted = WeightedSearch().quantize(weight, fmt, statistics)
        importance = statistics.second_moment
        assert loss(weight, weighted, importance) <= loss(weight, nearest, importance) * CLOSE
        parts, specs = found.parts(), fmt.stored(parameter(shape, "F32"))
        assert list(parts) == list(specs)
        assert [tuple(part.shape) for part in parts.values()] == [spec.shape for spec in specs.values()]
        dtypes = {torch.float16: "F16", torch.uint8: "U8", torch.int8: "I8"}
        assert all(dtypes[parts[part].dtype] == specs[part].dtype for part in parts if part != "codes")


def test_searches_gain_at_low_bits() -> None:
    """At 2 bits a third of the error or more: the range of a normal distribution's 32 values is twice what is best."""
    weight = random_weight((64, 256))
    for name in ("int2", "uint2"):
        fmt = made(name)
        assert loss(weight, Search().quantize(weight, fmt, None)) < 0.7 * loss(weight, fmt.quantize(weight))


@pytest.mark.parametrize("label", ["int3+scale8", "uint4+scale8", "normal-float4+scale8"])
def test_chunks_do_not_change_the_result(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, fmt = random_weight((20, 48)), made(label)
    whole = Search().quantize(weight, fmt, None).parts()
    monkeypatch.setattr("sdcompress.quant.grid_format.PIECE", 150)
    pieces = Search().quantize(weight, fmt, None).parts()
    assert all(torch.equal(whole[part], pieces[part]) for part in whole)


def test_what_cannot_be_done_is_said() -> None:
    weight = random_weight((4, 32))
    with pytest.raises(ValueError, match="needs the statistics"):
        WeightedSearch().quantize(weight, made("int4"), None)
    with pytest.raises(ValueError, match="of 31 columns, and the weight has 32"):
        WeightedSearch().quantize(weight, made("int4"), uneven(31))
    weight[0, 0] = torch.nan
    for name in FORMATS:
        with pytest.raises(ValueError, match="1 of 128 values are NaN or infinite"):
            Search().quantize(weight, made(name), None)
