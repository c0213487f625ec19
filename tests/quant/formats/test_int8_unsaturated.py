"""int8-unsaturated: no pair of neighbouring codes can overflow 16 bits, and rounding stays within half a step."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import random, step_of_weights

from sdcompress.quant.formats.int8_unsaturated import largest_pair
from sdcompress.quant.registry import from_label
from sdcompress.sources.spec import Layer


def worst_pair(codes: torch.Tensor) -> int:
    """The largest |sum| that unsigned activations can make of two codes of neighbouring input channels, over 255."""
    worst = 0
    for row in codes.flatten(2).permute(0, 2, 1).flatten(1).tolist() if codes.dim() > 2 else codes.tolist():
        for first, second in zip(row[::2], [*row[1::2], *([0] if len(row) % 2 else [])], strict=True):
            worst = max(worst, max(first, 0) + max(second, 0), -min(first, 0) - min(second, 0))
    return worst


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9)),
    kernel=st.sampled_from([(), (1, 1), (3, 3), (1, 2)]),
    seed=st.integers(0, 2**16),
    skew=st.sampled_from([0.0, 5.0, -5.0]),
)
def test_pairs_cannot_saturate_and_errors_are_half_a_step(
    shape: tuple[int, int], kernel: tuple[int, ...], seed: int, skew: float
) -> None:
    weight = random(*shape, *kernel, seed=seed) + skew
    result = from_label("int8-unsaturated").quantize(weight)
    assert 255 * worst_pair(result.codes) < 2**15
    error = (result.dequantize(torch.float32).double() - weight.double()).abs().flatten(1)
    # Float32 multiplication of code and scale rounds once more: one unit in the last place of the weight.
    assert bool((error <= step_of_weights(result) / 2 + weight.double().abs().flatten(1) * 2**-23).all())


def test_int8_would_saturate() -> None:
    """What the format is for: two large neighbours of one sign."""
    weight = torch.tensor([[1.0, 1.0, -0.1]])
    assert 255 * worst_pair(from_label("int8").quantize(weight).codes) >= 2**15
    assert 255 * worst_pair(from_label("int8-unsaturated").quantize(weight).codes) < 2**15


def test_largest_pair_by_hand() -> None:
    rows = torch.tensor([[1.0, 2.0, -3.0, 0.5, 4.0], [-1.0, -2.0, 2.5, -0.5, 0.0]])
    assert largest_pair(rows).tolist() == [[4.0], [3.0]]
    assert largest_pair(rows.view(2, 5, 1, 1)).tolist() == [[4.0], [3.0]]


def test_groups_are_refused() -> None:
    layer = Layer("x", "linear", 64, "x.weight", (8, 8))
    assert from_label("int8-unsaturated").problem(layer) is None
    problem = from_label("int8-unsaturated/16").problem(layer)
    assert problem is not None and problem.field == "group_size"
