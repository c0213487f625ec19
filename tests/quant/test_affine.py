"""Formats with zero points against loops, their bound and their bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdcompress.quant.registry import known_formats
from sdcompress.sources.spec import parameter

SHAPES = [(4, 64), (3, 40), (2, 35, 3, 3)]


def random_weight(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale_bits", [8, 16])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_equals_loops_and_is_within_a_step(shape: tuple[int, ...], scale_bits: int, bits: int) -> None:
    weight = random_weight(shape)
    fmt: Any = known_formats()[f"uint{bits}"](None, scale_bits)
    tensor = fmt.quantize(weight)
    groups = fmt.layout(shape).group_of_columns().tolist()
    scale = tensor.scale.double().flatten(1)
    if tensor.scale_step is not None:
        scale = scale * tensor.scale_step.double()[:, None]
    zero = tensor.zero_point.double().flatten(1) / 2 ** (8 - bits)
    close = tensor.dequantize(torch.float32).double().flatten(1)
    for row, values in enumerate(weight.double().flatten(1).tolist()):
        for column, value in enumerate(values):
            s, z = float(scale[row, groups[column]]), float(zero[row, groups[column]])
            code = min(max(round(value / s + z), 0), 2**bits - 1)
            # Float32 in the format, Python's float64 here: one in a million quotients ends on the other side.
            assert (
                abs(float(close[row, column]) - (code - z) * s) < 1e-5 * max(1, abs(value))
                or abs((value / s + z) % 1 - 0.5) < 1e-4
            )
    # Half a step, and where the rounded zero point moves the range, half of what zero points are rounded to.
    bound = scale[:, groups] * (0.5 + 0.5 / 2 ** (8 - bits)) + 1e-5
    assert bool(((close - weight.double().flatten(1)).abs() <= bound).all())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale_bits", [8, 16])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_bytes(shape: tuple[int, ...], scale_bits: int, bits: int) -> None:
    fmt: Any = known_formats()[f"uint{bits}"](None, scale_bits)
    specs, parts = fmt.stored(parameter(shape, "F32")), fmt.quantize(random_weight(shape)).parts()
    assert list(specs) == list(parts)
    groups, weights = fmt.layout(shape).groups * shape[0], random_weight(shape).numel()
    expected = -(-weights * bits // 8) + groups * (1 + scale_bits // 8) + (2 * shape[0] if scale_bits == 8 else 0)
    assert sum(spec.size_bytes for spec in specs.values()) == expected
    assert all(parts[name].nbytes == spec.size_bytes for name, spec in specs.items() if name != "codes")


def test_the_fill_of_a_last_group_does_not_count() -> None:
    """33 channels: the last group is of one, all of whose weights a grid of two codes or more can hit."""
    weight = torch.rand(4, 33, generator=torch.Generator().manual_seed(1)) + 5
    fmt: Any = known_formats()["uint2"]()
    codes_of_all = fmt.fit(weight, None, search=True).decode(
        fmt.nearest(weight, fmt.fit(weight, None, search=True)), fmt.layout((4, 33)).group_of_columns()
    )
    # One code's step is a third of the range 0 .. w, whose ends are codes: exact but for float16 scales.
    assert torch.allclose(codes_of_all[:, 32], weight[:, 32], rtol=0.01)
