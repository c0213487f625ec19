"""int4 against its bound, a slow reference written apart, and its stored form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcompress.quant.symmetric import Int4
from sdcompress.sources.spec import Layer, parameter

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KERNELS: list[tuple[int, ...]] = [(), (1, 1), (3, 3), (1, 2)]


def random_weight(shape: tuple[int, ...], dtype: str = "F32", seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])


def layer(shape: tuple[int, ...]) -> Layer:
    return Layer("block.layer", "linear" if len(shape) == 2 else "conv3x3", math.prod(shape), "w", shape)


def half_steps(scale: torch.Tensor, group: int) -> torch.Tensor:
    return scale.float().repeat_interleave(group, dim=1) / 2


def smallest_half_at_least(value: float) -> float:
    """The least float16 not below `value`, from the definition of binary16."""
    step = 2.0 ** (max(math.floor(math.log2(value)), -14) - 10)
    return math.ceil(value / step) * step


def slow_reference(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [out, in, positions] and scales [out, blocks, positions], by loops over Python floats."""
    out_channels, in_channels = weight.shape[:2]
    rows = weight.double().reshape(out_channels, in_channels, -1)
    codes = torch.zeros(rows.shape, dtype=torch.int64)
    scales = torch.zeros(out_channels, in_channels // group, rows.shape[2], dtype=torch.float64)
    for o in range(out_channels):
        for position in range(rows.shape[2]):
            for block in range(in_channels // group):
                channels = range(block * group, (block + 1) * group)
                members = [float(rows[o, i, position]) for i in channels]
                scale = smallest_half_at_least(max(max(map(abs, members)) / 7, 2.0**-24))
                scales[o, block, position] = scale
                for i, value in zip(channels, members, strict=True):
                    codes[o, i, position] = max(-7, min(7, round(value / scale)))
    return codes, scales


@settings(max_examples=30, deadline=None)
@given(
    out_channels=st.integers(1, 3),
    blocks=st.integers(1, 3),
    group=st.sampled_from([16, 32]),
    kernel=st.sampled_from(KERNELS),
    dtype=st.sampled_from(list(DTYPES)),
    size=st.sampled_from([1.0, 1e-3, 1e3]),
    seed=st.integers(0, 2**16),
)
def test_equals_slow_reference(
    out_channels: int, blocks: int, group: int, kernel: tuple[int, ...], dtype: str, size: float, seed: int
) -> None:
    weight = random_weight((out_channels, blocks * group, *kernel), dtype, seed) * size
    result = Int4(group).quantize(weight)
    codes, scales = slow_reference(weight, group)
    assert torch.equal(result.scale.reshape(scales.shape).double(), scales)
    # The quotient is float32 there and float64 here: codes may differ by one where it lies on the edge of rounding.
    quotient = weight.double().reshape(codes.shape) / scales.repeat_interleave(group, dim=1)
    edge = ((quotient.abs() % 1) - 0.5).abs() < 1e-5
    difference = (result.codes.reshape(codes.shape).long() - codes).abs()
    assert not bool(difference[~edge].any()) and int(difference.max()) <= 1


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4).map(lambda blocks: 32 * blocks)),
    kernel=st.sampled_from(KERNELS),
    dtype=st.sampled_from(list(DTYPES)),
    seed=st.integers(0, 2**16),
)
def test_error_is_at_most_half_a_step(shape: tuple[int, int], kernel: tuple[int, ...], dtype: str, seed: int) -> None:
    weight = random_weight((*shape, *kernel), dtype, seed)
    result = Int4().quantize(weight)
    assert int(result.codes.min()) >= -7 and int(result.codes.max()) <= 7
    error = (result.dequantize(torch.float32) - weight.float()).abs()
    # Float32 multiplication of code and scale rounds once more: one unit in the last place of the weight.
    assert bool((error <= half_steps(result.scale, 32) + weight.float().abs() * 2**-23).all())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("group", [None, 16])
def test_stored_specs_are_what_is_stored(kernel: tuple[int, ...], group: int | None) -> None:
    weight = random_weight((3, 96, *kernel), "F16")
    fmt = Int4(group)
    result, specs = fmt.quantize(weight), fmt.stored(parameter(tuple(weight.shape), "F16"))
    assert tuple(result.codes.shape) == specs["codes"].shape and result.codes.dtype == torch.int8
    assert tuple(result.scale.shape) == specs["scale"].shape and result.scale.dtype == torch.float16
    assert specs["codes"].size_bytes == math.ceil(weight.numel() / 2) and specs["codes"].parameters == weight.numel()
    assert specs["scale"].size_bytes == 2 * result.scale.numel() and specs["scale"].parameters == 0


def test_stored_bytes_of_odd_shapes() -> None:
    """Half a byte each, rounded up to whole bytes at the end of the tensor and not of each row."""
    assert Int4(16).stored(parameter((3, 48, 3, 3), "F32"))["codes"].size_bytes == 3 * 48 * 9 // 2
    assert Int4(16).stored(parameter((1, 16, 1, 3), "F32"))["codes"].size_bytes == 24
    onnx_ir = pytest.importorskip("onnx_ir", reason="onnx_ir is not installed (pip install 'sdcompress[onnx]')")
    codes = Int4(16).quantize(random_weight((3, 48, 3, 3))).codes.numpy()
    packed = onnx_ir.Tensor(codes, dtype=onnx_ir.DataType.INT4, shape=onnx_ir.Shape(codes.shape))
    assert packed.nbytes == len(packed.tobytes()) == 3 * 48 * 9 // 2


@pytest.mark.parametrize(
    ("group", "shape", "problem"),
    [
        (None, (8, 64), None),
        (16, (8, 48), None),
        (None, (8, 48), "32 does not divide 48 (block.layer); use 16"),
        (64, (8, 96, 3, 3), "64 does not divide 96 (block.layer); use 16 or 32"),
        (16, (8, 4, 3, 3), "16 does not divide 4 (block.layer); leave the layer out"),
        (48, (8, 96), "48 is no power of two from 16 on, as ONNX Runtime's kernels need"),
        (8, (8, 96), "8 is no power of two from 16 on, as ONNX Runtime's kernels need"),
    ],
)
def test_problems_of_a_group_size(group: int | None, shape: tuple[int, ...], problem: str | None) -> None:
    """ONNX' blocks are all alike; torch's last one may be smaller."""
    found = Int4(group).problem(layer(shape), "onnx")
    assert (found and found.message) == problem
    assert Int4(group).problem(layer(shape)) is None


def test_zero_blocks_stay_zero() -> None:
    weight = torch.zeros(2, 64, 3, 3)
    assert torch.equal(Int4().quantize(weight).dequantize(torch.float32), weight)


def test_each_kernel_position_has_scales_of_its_own() -> None:
    weight = torch.ones(1, 32, 1, 2)
    weight[..., 1] = 1e-3
    result = Int4().quantize(weight)
    assert tuple(result.scale.shape) == (1, 1, 1, 2)
    # 7 x a scale rounded up to float16, at most a unit in its last place: 2^-10.
    assert torch.allclose(result.dequantize(torch.float32), weight, rtol=2**-10)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_what_no_code_can_stand_for(value: float) -> None:
    weight = torch.ones(2, 32, 1, 1)
    weight[1, 2] = value
    with pytest.raises(ValueError, match="1 of 64 values are NaN or infinite"):
        Int4().quantize(weight)


def test_the_weight_is_left_as_it_was() -> None:
    weight = random_weight((4, 32, 3, 3))
    copy = weight.clone()
    Int4().quantize(weight)
    assert torch.equal(weight, copy)
