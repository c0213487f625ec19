"""Symmetric formats against their bound and a slow reference, and what ONNX asks of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import random, step_of_weights

from sdcompress.quant.formats.symmetric import Symmetric
from sdcompress.quant.registry import from_label
from sdcompress.sources.spec import Layer, parameter

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def smallest_half_at_least(value: float) -> float:
    """The least float16 not below `value`, from the definition of binary16."""
    step = 2.0 ** (max(math.floor(math.log2(value)), -14) - 10)
    return math.ceil(value / step) * step


def slow_reference(weight: torch.Tensor, bits: int, group: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and the scale of each weight, [out, in, positions], by loops over Python floats."""
    rows = weight.double().reshape(*weight.shape[:2], -1)
    codes, scales = torch.zeros(rows.shape, dtype=torch.int64), torch.zeros_like(rows)
    out_channels, in_channels, positions = rows.shape
    group = group or (32 if bits < 8 else in_channels)
    runs = [[position] for position in range(positions)] if bits < 8 else [list(range(positions))]
    top = 2 ** (bits - 1) - 1
    for out in range(out_channels):
        for start in range(0, in_channels, group):
            for run in runs:
                members = [(i, p) for i in range(start, min(start + group, in_channels)) for p in run]
                values = {member: float(rows[(out, *member)]) for member in members}
                scale = smallest_half_at_least(max(max(map(abs, values.values())) / top, 2.0**-24))
                for member, value in values.items():
                    scales[(out, *member)] = scale
                    codes[(out, *member)] = max(-top, min(top, round(value / scale)))
    return codes, scales


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40)),
    kernel=st.sampled_from([(), (1, 1), (3, 3), (1, 2)]),
    group=st.sampled_from([None, 1, 3, 16, 32]),
    bits=st.sampled_from([2, 3, 4, 5, 6, 8]),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([1.0, 1e-3, 1e3]),
    seed=st.integers(0, 2**16),
)
def test_equals_slow_reference(
    shape: tuple[int, int],
    kernel: tuple[int, ...],
    group: int | None,
    bits: int,
    dtype: torch.dtype,
    size: float,
    seed: int,
) -> None:
    weight = random(*shape, *kernel, seed=seed).to(dtype) * size
    result = Symmetric(f"int{bits}", bits, group).quantize(weight)
    codes, scales = slow_reference(weight, bits, group)
    assert torch.equal(step_of_weights(result), scales.flatten(1))
    # The quotient is float32 there and float64 here: codes may differ by one where it lies on the edge of rounding.
    edge = ((weight.double().reshape(codes.shape) / scales).abs() % 1 - 0.5).abs() < 1e-4
    difference = (result.codes.reshape(codes.shape).long() - codes).abs()
    assert not bool(difference[~edge].any()) and int(difference.max()) <= 1


@pytest.mark.parametrize("shape", [(7, 64), (3, 40), (2, 35, 3, 3), (300, 16)])
@pytest.mark.parametrize("scale_bits", [8, 16])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_error_is_at_most_half_a_step(shape: tuple[int, ...], scale_bits: int, bits: int) -> None:
    for dtype in DTYPES:
        weight = random(*shape).to(dtype)
        tensor = Symmetric(f"int{bits}", bits, 32, scale_bits).quantize(weight)
        assert int(tensor.codes.abs().max()) <= 2 ** (bits - 1) - 1
        error = (tensor.dequantize(torch.float32).double() - weight.double()).abs().flatten(1)
        # Float32 multiplication of code and scale rounds once more: one unit in the last place of the weight.
        assert bool((error <= step_of_weights(tensor) / 2 + weight.double().abs().flatten(1) * 2**-23).all())


def test_largest_code_is_not_clipped_when_the_scale_is_rounded() -> None:
    weight = torch.tensor([[1.0001, -0.3], [3e-7, 1e-8]])
    assert bool((from_label("int8").quantize(weight).scale.float() * 127 >= weight.abs().amax(1)).all())  # type: ignore


def test_each_kernel_position_has_scales_of_its_own() -> None:
    weight = torch.ones(1, 32, 1, 2)
    weight[..., 1] = 1e-3
    result = from_label("int4").quantize(weight)
    # 7 x a scale rounded up to float16, at most a unit in its last place: 2^-10.
    assert torch.allclose(result.dequantize(torch.float32), weight, rtol=2**-10)


@pytest.mark.parametrize("scale_bits", [8, 16])
def test_a_searched_scale_turns_to_the_larger_side(scale_bits: int) -> None:
    weight = torch.tensor([[-4.0, 3, 1, -1], [4, -3, -1, 1]])
    fmt = Symmetric("int3", 3, None, scale_bits)
    grid = fmt.fit(weight, None, search=True)
    assert grid.scale is not None and grid.scale[:, 0].sign().tolist() == [1, -1]
    codes = fmt.nearest(weight, grid)
    assert codes.tolist() == [[-4, 3, 1, -1]] * 2
    close = fmt.assemble(codes, grid, (2, 4)).dequantize(torch.float32)
    assert torch.allclose(close, weight, rtol=2**-9)  # steps of 1, rounded to nearest as float16


def test_eight_bits_stay_symmetric() -> None:
    grid = Symmetric("int8", 8).fit(random(4, 64), None, search=True)
    assert (grid.low, grid.high) == (-127, 127) and grid.scale is not None and bool((grid.scale > 0).all())


@pytest.mark.parametrize(
    ("label", "shape", "problem"),
    [
        ("int4", (8, 64), None),
        ("int4/16", (8, 48), None),
        ("int4", (8, 48), "32 does not divide 48 (block.layer); use 16"),
        ("int4/64", (8, 96, 3, 3), "64 does not divide 96 (block.layer); use 16 or 32"),
        ("int4/16", (8, 4, 3, 3), "16 does not divide 4 (block.layer); leave the layer out"),
        ("int4/48", (8, 96), "48 is no power of two from 16 on, as ONNX Runtime's kernels need"),
        ("int4/8", (8, 96), "8 is no power of two from 16 on, as ONNX Runtime's kernels need"),
        ("int8/5", (8, 96), "5 does not divide 96 (block.layer); use 16 or 32"),
    ],
)
def test_problems_of_a_group_size(label: str, shape: tuple[int, ...], problem: str | None) -> None:
    """Blocks of ONNX are equally large; in torch the last one may be smaller."""
    layer = Layer("block.layer", "linear" if len(shape) == 2 else "conv3x3", math.prod(shape), "w", shape)
    found = from_label(label).problem(layer, "onnx")
    assert (found and found.message) == problem
    assert from_label(label).problem(layer) is None


def test_onnx_packs_four_bits_into_as_many_bytes() -> None:
    onnx_ir = pytest.importorskip("onnx_ir", reason="onnx_ir is not installed (pip install 'sdcompress[onnx]')")
    for shape in ((3, 48, 3, 3), (1, 16, 1, 3), (1, 3)):
        codes = from_label("int4").quantize(random(*shape)).codes.numpy()
        packed = onnx_ir.Tensor(codes, dtype=onnx_ir.DataType.INT4, shape=onnx_ir.Shape(codes.shape))
        assert len(packed.tobytes()) == from_label("int4").stored(parameter(shape, "F32"))["codes"].size_bytes
