"""Formats with zero points against loops and their bound."""

from __future__ import annotations

import pytest
import torch
from random_weights import random, step_of_weights

from sdcompress.quant.formats.affine import Affine


@pytest.mark.parametrize("shape", [(4, 64), (3, 40), (2, 35, 3, 3)])
@pytest.mark.parametrize("scale_bits", [8, 16])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_equals_loops_and_is_within_a_step(shape: tuple[int, ...], scale_bits: int, bits: int) -> None:
    weight = random(*shape) + 0.3
    fmt = Affine(f"uint{bits}", bits, None, scale_bits)
    tensor = fmt.quantize(weight)
    assert tensor.zero_point is not None
    steps, groups = step_of_weights(tensor), fmt.layout(shape).group_of_columns()
    zeros = tensor.zero_point.double().flatten(1)[:, groups] / 2 ** (8 - bits)
    close = tensor.dequantize(torch.float32).double().flatten(1)
    for row, values in enumerate(weight.double().flatten(1).tolist()):
        for column, value in enumerate(values):
            s, z = float(steps[row, column]), float(zeros[row, column])
            code = min(max(round(value / s + z), 0), 2**bits - 1)
            # Float32 in the format, Python's float64 here: one in a million quotients ends on the other side.
            same = abs(float(close[row, column]) - (code - z) * s) < 1e-5 * max(1, abs(value))
            assert same or abs((value / s + z) % 1 - 0.5) < 1e-4
    # Half a step, and where the rounded zero point moves the range, half of what zero points are rounded to.
    bound = steps * (0.5 + 0.5 / 2 ** (8 - bits)) + 1e-5
    assert bool(((close - weight.double().flatten(1)).abs() <= bound).all())


def test_the_fill_of_a_last_group_does_not_count() -> None:
    """33 channels: the last group is of one, all of whose weights a grid of two codes or more can hit."""
    weight = torch.rand(4, 33, generator=torch.Generator().manual_seed(1)) + 5
    fmt = Affine("uint2", 2)
    grid = fmt.fit(weight, None, search=True)
    close = grid.decode(fmt.nearest(weight, grid), fmt.layout((4, 33)).group_of_columns())
    # One code's step is a third of the range 0 .. w, whose ends are codes: exact but for float16 scales.
    assert torch.allclose(close[:, 32], weight[:, 32], rtol=0.01)
