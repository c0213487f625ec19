"""Symmetric formats: bound, bytes, partial groups, and the signs of searched scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdcompress.quant.registry import known_formats
from sdcompress.sources.spec import parameter

SHAPES = [(4, 64), (3, 40), (2, 35, 3, 3)]


def random_weight(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale_bits", [8, 16])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_bound_codes_and_bytes(shape: tuple[int, ...], scale_bits: int, bits: int) -> None:
    weight = random_weight(shape)
    fmt: Any = known_formats()[f"int{bits}"](32, scale_bits)
    tensor, specs = fmt.quantize(weight), fmt.stored(parameter(shape, "F32"))
    scale = tensor.scale.float().flatten(1)
    if tensor.scale_step is not None:
        scale = scale * tensor.scale_step.float()[:, None]
    of_columns = scale[:, fmt.layout(shape).group_of_columns()]
    close = tensor.dequantize(torch.float32).flatten(1)
    assert torch.equal(close, tensor.codes.flatten(1).float() * of_columns)
    # Nothing is clipped, so that half a step is the most; float32 rounds once more.
    assert bool(((close - weight.flatten(1)).abs() <= of_columns * (0.5 + 1e-5)).all())
    assert int(tensor.codes.abs().max()) <= 2 ** (bits - 1) - 1
    groups = fmt.layout(shape).groups * shape[0]
    expected = -(-weight.numel() * bits // 8) + groups * scale_bits // 8 + (2 * shape[0] if scale_bits == 8 else 0)
    assert sum(spec.size_bytes for spec in specs.values()) == expected
    parts = tensor.parts()
    assert list(parts) == list(specs)
    assert all(parts[name].nbytes == spec.size_bytes for name, spec in specs.items() if name != "codes")


@pytest.mark.parametrize("scale_bits", [8, 16])
def test_a_searched_scale_turns_to_the_larger_side(scale_bits: int) -> None:
    weight = torch.tensor([[-4.0, 3, 1, -1], [4, -3, -1, 1]])
    fmt: Any = known_formats()["int3"](None, scale_bits)
    grid = fmt.fit(weight, None, search=True)
    assert grid.scale is not None and grid.scale[:, 0].sign().tolist() == [1, -1]
    codes = fmt.nearest(weight, grid)
    assert codes.tolist() == [[-4, 3, 1, -1]] * 2
    close = fmt.assemble(codes, grid, (2, 4)).dequantize(torch.float32)
    # Steps of 1, rounded to nearest as float16.
    assert torch.allclose(close, weight, rtol=2**-9)


def test_eight_bits_stay_symmetric() -> None:
    fmt: Any = known_formats()["int8"]()
    grid = fmt.fit(random_weight((4, 64)), None, search=True)
    assert (grid.low, grid.high) == (-127, 127) and bool((grid.scale > 0).all())
