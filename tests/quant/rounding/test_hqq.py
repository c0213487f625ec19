"""hqq: what it minimises is smaller than where it began, with and without zero points."""

from __future__ import annotations

import pytest
import torch

from sdcompress.quant.registry import from_label
from sdcompress.quant.rounding.hqq import HQQ
from sdcompress.quant.rounding.search import Search


def heavy_tailed(shape: tuple[int, ...]) -> torch.Tensor:
    """Student's t with 3 degrees of freedom: a few weights far out."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(shape, generator=generator)
    spread = torch.randn(3, *shape, generator=generator).square().mean(0).sqrt()
    return 0.02 * normal / spread


@pytest.mark.parametrize("name", ["int2", "int3", "int4", "uint2", "uint3", "uint4"])
@pytest.mark.parametrize("shape", [(64, 200), (16, 70, 3, 3)])  # 200 and 70 channels end in smaller groups
def test_the_error_counts_outliers_less(name: str, shape: tuple[int, ...]) -> None:
    """sum |w - w'|^0.7, which hqq minimises, against the scales that minimise the square."""
    weight, fmt = heavy_tailed(shape), from_label(name)

    def loss(rounding: HQQ | Search) -> float:
        close = rounding.quantize(weight, fmt, None).dequantize(torch.float32)  # type: ignore[arg-type]
        return float((weight - close).abs().pow(0.7).sum())

    assert loss(HQQ()) < loss(Search())


def test_the_same_twice() -> None:
    weight, fmt = heavy_tailed((32, 64)), from_label("uint3+scale8")
    first, second = (HQQ().quantize(weight, fmt, None).parts() for _ in range(2))  # type: ignore[arg-type]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_nan_is_refused() -> None:
    weight = heavy_tailed((4, 32))
    weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match="1 of 128 values are NaN or infinite"):
        HQQ().quantize(weight, from_label("int4"), None)  # type: ignore[arg-type]
