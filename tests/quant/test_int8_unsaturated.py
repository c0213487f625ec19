"""int8-unsaturated: no pair of neighbouring codes can overflow 16 bits, and rounding stays within half a step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcompress.quant.int8 import Int8
from sdcompress.quant.int8_unsaturated import Int8Unsaturated, largest_pair
from sdcompress.sources.spec import Layer, parameter


def random_weight(shape: tuple[int, ...], seed: int = 0, skew: float = 0.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + skew


def worst_pair(codes: torch.Tensor) -> int:
    """The largest |sum| that unsigned activations can make of two codes of neighbouring input channels, over 255."""
    worst = 0
    for row in codes.flatten(2).permute(0, 2, 1).flatten(1).tolist() if codes.dim() > 2 else codes.tolist():
        for first, second in zip(row[::2], [*row[1::2], *([0] if len(row) % 2 else [])], strict=True):
            worst = max(worst, max(first, 0) + max(second, 0), -min(first, 0) - min(second, 0))
    return worst


@settings(max_examples=60, deadline=None)
@given(
    out_channels=st.integers(1, 4),
    in_channels=st.integers(1, 9),
    kernel=st.sampled_from([(), (1, 1), (3, 3), (1, 2)]),
    seed=st.integers(0, 2**16),
    skew=st.sampled_from([0.0, 5.0, -5.0]),
)
def test_pairs_cannot_saturate_and_errors_are_half_a_step(
    out_channels: int, in_channels: int, kernel: tuple[int, ...], seed: int, skew: float
) -> None:
    weight = random_weight((out_channels, in_channels, *kernel), seed, skew)
    result = Int8Unsaturated().quantize(weight)
    assert 255 * worst_pair(result.codes) < 2**15
    error = (result.dequantize(torch.float32) - weight).abs()
    half_step = result.scale.float().view(-1, *[1] * (weight.dim() - 1)) / 2
    # Float32 multiplication of code and scale rounds once more: one unit in the last place of the weight.
    assert bool((error <= half_step + weight.abs() * 2**-23).all())


def test_int8_would_saturate() -> None:
    """What the format is for: two large neighbours of one sign."""
    weight = torch.tensor([[1.0, 1.0, -0.1]])
    assert 255 * worst_pair(Int8().quantize(weight).codes) >= 2**15
    assert 255 * worst_pair(Int8Unsaturated().quantize(weight).codes) < 2**15


def test_largest_pair_by_hand() -> None:
    rows = torch.tensor([[1.0, 2.0, -3.0, 0.5, 4.0], [-1.0, -2.0, 2.5, -0.5, 0.0]])
    assert largest_pair(rows).tolist() == [[4.0], [3.0]]
    assert largest_pair(rows.view(2, 5, 1, 1)).tolist() == [[4.0], [3.0]]


def test_stored_specs_are_what_is_stored() -> None:
    weight, fmt = random_weight((6, 8, 3, 3)), Int8Unsaturated()
    result, specs = fmt.quantize(weight), fmt.stored(parameter(tuple(weight.shape), "F32"))
    assert tuple(result.codes.shape) == specs["codes"].shape and result.codes.dtype == torch.int8
    assert tuple(result.scale.shape) == specs["scale"].shape == (6,)


def test_groups_are_refused() -> None:
    layer = Layer("x", "linear", 64, "x.weight", (8, 8))
    assert Int8Unsaturated().problem(layer) is None
    assert Int8Unsaturated(16).problem(layer).field == "group_size"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_what_no_code_can_stand_for(value: float) -> None:
    weight = torch.ones(4, 4)
    weight[1, 2] = value
    with pytest.raises(ValueError, match="1 of 16 values are NaN or infinite"):
        Int8Unsaturated().quantize(weight)
