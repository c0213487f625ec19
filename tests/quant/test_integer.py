"""int8 against its bound, a slow reference written apart, and itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcompress.quant.int8 import Int8
from sdcompress.sources.spec import parameter

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def random_weight(shape, dtype="F32", seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])


def slow_reference(weight, bits, group_size):
    """Plain Python loops over Python floats: codes and scales, no tensor arithmetic."""
    top = 2 ** (bits - 1) - 1
    out_channels, in_channels = weight.shape[:2]
    rows = weight.reshape(out_channels, in_channels, -1).tolist()
    group_size = group_size or in_channels
    codes = [[[0] * len(rows[0][0]) for _ in range(in_channels)] for _ in range(out_channels)]
    scales = []
    for o, row in enumerate(rows):
        scales.append([])
        for start in range(0, in_channels, group_size):
            members = [value for channel in row[start : start + group_size] for value in channel]
            scale = smallest_half_at_least(max(max(abs(value) for value in members) / top, 2.0**-24))
            scales[-1].append(scale)
            for i in range(start, start + group_size):
                codes[o][i] = [max(-top, min(top, round(value / scale))) for value in row[i]]
    return codes, scales


def smallest_half_at_least(value):
    """The least float16 not below `value`, from the definition of binary16."""
    exponent = max(math.floor(math.log2(value)), -14)
    step = 2.0 ** (exponent - 10)
    return math.ceil(value / step) * step


@settings(max_examples=40, deadline=None)
@given(
    out_channels=st.integers(1, 5),
    groups=st.integers(1, 3),
    group=st.integers(1, 7),
    kernel=st.sampled_from([(), (1, 1), (3, 3)]),
    grouped=st.booleans(),
    bits=st.integers(2, 8),
    dtype=st.sampled_from(list(DTYPES)),
    seed=st.integers(0, 2**16),
)
def test_equals_slow_reference(out_channels, groups, group, kernel, grouped, bits, dtype, seed):
    weight = random_weight((out_channels, groups * group, *kernel), dtype, seed)
    fmt = type("Coarse", (Int8,), {"bits": bits})(group if grouped else None)
    result = fmt.quantize(weight)
    codes, scales = slow_reference(weight.double(), bits, group if grouped else None)
    assert result.scale.reshape(out_channels, -1).double().tolist() == scales
    expected = torch.tensor(codes).reshape(weight.shape)
    # The quotient is float32 there and float64 here: codes may differ by one where it lies on the edge of rounding.
    quotient = weight.double() / torch.tensor(scales).repeat_interleave(weight.shape[1] // len(scales[0]), 1).reshape(
        out_channels, -1, *[1] * len(kernel)
    )
    edge = ((quotient.abs() % 1) - 0.5).abs() < 1e-4
    assert torch.equal(result.codes.long()[~edge], expected[~edge])
    assert int((result.codes.long() - expected).abs().max()) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 12), (5, 8, 3, 3), (300, 16)])
def test_error_is_at_most_half_a_step(shape, dtype):
    weight = random_weight(shape, dtype)
    result = Int8(4).quantize(weight)
    error = (result.dequantize(torch.float32) - weight.float()).abs()
    half_step = result.scale.float().repeat_interleave(4, 1).reshape(shape[0], shape[1], *[1] * (len(shape) - 2)) / 2
    # Float32 multiplication of code and scale rounds once more: one unit in the last place of the weight.
    assert bool((error <= half_step + weight.float().abs() * 2**-23).all())


def test_largest_code_is_not_clipped_when_the_scale_is_rounded():
    weight = torch.tensor([[1.0001, -0.3], [3e-7, 1e-8]])
    result = Int8().quantize(weight)
    assert bool((result.scale.float() * 127 >= weight.abs().amax(1)).all())


def test_zero_rows_stay_zero():
    weight = torch.zeros(3, 4)
    assert torch.equal(Int8().quantize(weight).dequantize(torch.float32), weight)


def test_chunks_do_not_change_the_codes(monkeypatch):
    weight = random_weight((33, 24, 3, 3))
    whole = Int8(8).quantize(weight)
    monkeypatch.setattr("sdcompress.quant.grid_format.PIECE", 500)
    pieces = Int8(8).quantize(weight)
    assert torch.equal(whole.codes, pieces.codes) and torch.equal(whole.scale, pieces.scale)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_what_no_code_can_stand_for(value):
    weight = torch.ones(4, 4)
    weight[1, 2] = value
    with pytest.raises(ValueError, match="1 of 16 values are NaN or infinite"):
        Int8().quantize(weight)


def test_the_weight_is_left_as_it_was():
    weight = random_weight((4, 6))
    copy = weight.clone()
    Int8().quantize(weight)
    assert torch.equal(weight, copy)


@pytest.mark.parametrize("group_size", [None, 4])
def test_stored_specs_are_what_is_stored(group_size):
    fmt, weight = Int8(group_size), random_weight((6, 8, 3, 3), "F16")
    result, specs = fmt.quantize(weight), fmt.stored(parameter(tuple(weight.shape), "F16"))
    assert tuple(result.codes.shape) == specs["codes"].shape and result.codes.dtype == torch.int8
    assert tuple(result.scale.shape) == specs["scale"].shape and result.scale.dtype == torch.float16
    assert specs["codes"].parameters == weight.numel() and specs["scale"].parameters == 0
