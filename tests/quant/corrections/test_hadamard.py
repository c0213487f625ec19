"""The rotation against its definition, against what it must leave alone, and inside compiled graphs."""

from __future__ import annotations

from functools import partial

import pytest
import random_weights
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import statistics_of
from torch.nn import functional as F

from sdcompress.quant.constants import hadamard_matrix
from sdcompress.quant.corrections.hadamard import (
    LARGEST_BLOCK,
    block_size,
    rotated_input,
    rotated_statistics,
    rotated_weight,
)

random = partial(random_weights.random, dtype=torch.float64)


def slow_rotation(values: list[float]) -> list[float]:
    """H x by definition: entry (i, j) of Sylvester's matrix is -1 to the power of the bits that i and j share."""
    size = len(values)
    return [sum((-1) ** (i & j).bit_count() * value for j, value in enumerate(values)) / size**0.5 for i in range(size)]


@pytest.mark.parametrize(
    ("channels", "size"), [(1, 1), (4, 4), (6, 2), (9, 1), (320, 64), (640, 128), (768, 128), (1280, 128), (4096, 128)]
)
def test_block_sizes(channels: int, size: int) -> None:
    assert block_size(channels) == size


@settings(max_examples=30, deadline=None)
@given(
    channels=st.integers(1, 40),
    kernel=st.sampled_from([(), (1, 1), (3, 3), (2, 3)]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_definition(channels: int, kernel: tuple[int, ...], seed: int) -> None:
    weight = random(2, channels, *kernel, seed=seed)
    size = block_size(channels)
    expected = torch.empty_like(weight)
    for row in range(2):
        for position in range(weight[0, 0].numel()):
            column = weight[row].reshape(channels, -1)[:, position].tolist()
            blocks = [slow_rotation(column[start : start + size]) for start in range(0, channels, size)]
            expected[row].view(channels, -1)[:, position] = torch.tensor(
                [v for block in blocks for v in block], dtype=torch.float64
            )
    # float64 sums of at most 32 terms of size 1: a few units of 2^-52.
    torch.testing.assert_close(rotated_weight(weight), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("power", range(8))
def test_the_matrix_is_symmetric_and_undoes_itself(power: int) -> None:
    matrix = hadamard_matrix(2**power, torch.float64, torch.device("cpu"))
    assert torch.equal(matrix, matrix.T)
    # 128 products of float64 numbers of size 1/128 each.
    torch.testing.assert_close(matrix @ matrix, torch.eye(2**power, dtype=torch.float64), atol=1e-14, rtol=0)
    assert LARGEST_BLOCK == 2**7


@pytest.mark.parametrize("shape", [(5, 12), (5, 96, 3, 3), (4, 128, 1, 1), (3, 7)])
def test_weights_are_restored(shape: tuple[int, ...]) -> None:
    weight = random(*shape)
    torch.testing.assert_close(rotated_weight(rotated_weight(weight)), weight, atol=1e-13, rtol=0)


def test_a_layer_of_rotated_input_gives_the_same() -> None:
    weight, x = random(5, 192), random(2, 7, 192, seed=1)
    exact = F.linear(x, weight)
    # Sums of 192 products of size 1, in float64.
    torch.testing.assert_close(F.linear(rotated_input(x, -1), rotated_weight(weight)), exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_padding_a_convolution_commutes_with_the_rotation(channels_last: bool) -> None:
    weight, x = random(5, 24, 3, 3), random(2, 24, 6, 5, seed=1)
    exact = F.conv2d(x, weight, padding=1, stride=2)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    rotated = rotated_input(x, 1)
    assert rotated.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    # Sums of 216 products of size 1, in float64.
    torch.testing.assert_close(
        F.conv2d(rotated, rotated_weight(weight), padding=1, stride=2), exact, atol=1e-12, rtol=0
    )


def test_a_convolution_with_groups_says_how_many_channels_it_rotates() -> None:
    weight, x = random(6, 12, 3, 3), random(1, 24, 4, 4, seed=1)
    exact = F.conv2d(x, weight, groups=2)
    rotated = rotated_input(x, 1, block_size(12))
    torch.testing.assert_close(F.conv2d(rotated, rotated_weight(weight), groups=2), exact, atol=1e-12, rtol=0)


def test_vectors_of_an_embedding_are_rotated_back() -> None:
    table = random(10, 48)
    found = F.embedding(torch.tensor([3, 1]), rotated_weight(table))
    torch.testing.assert_close(rotated_input(found, -1), table[[3, 1]], atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [64, 128])
def test_half_precision(dtype: torch.dtype, channels: int) -> None:
    x = random(50, channels).to(dtype)
    rotated = rotated_input(x, -1)
    assert rotated.dtype == dtype
    # Entries of the matrix are off by 1e-4 at most (see there), results are rounded by half a unit in the last place.
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(rotated.double(), rotated_input(x.double(), -1), atol=1e-3 * ulp, rtol=ulp / 2 + 2e-4)


def test_an_outlier_is_spread() -> None:
    weight = torch.zeros(1, 64)
    weight[0, 5] = 8.0
    assert torch.equal(rotated_weight(weight).abs(), torch.ones(1, 64))


@pytest.mark.parametrize(("channels", "positions", "sizes"), [(24, 1, (24,)), (24, 9, (72, 144)), (6, 4, (8, 16))])
def test_statistics_are_those_of_rotated_rows(channels: int, positions: int, sizes: tuple[int, ...]) -> None:
    rows = random(40, channels * positions)
    rotated = rotated_input(rows.view(40, channels, positions), 1).reshape(40, -1)
    result = rotated_statistics(statistics_of(rows, *sizes), channels)
    expected = statistics_of(rotated, *sizes)
    assert result.count == 40
    # float64 sums of a few hundred products of size 1.
    torch.testing.assert_close(result.mean, expected.mean, atol=1e-13, rtol=0)
    torch.testing.assert_close(result.moments, expected.moments, atol=1e-12, rtol=0)


def test_moment_blocks_that_part_rotated_channels_are_joined() -> None:
    """Two positions; 24 channels rotate by eights; blocks of 5, 11 and 8 channels: the first two are joined."""
    statistics = statistics_of(random(40, 48), 10, 22, 16)
    result = rotated_statistics(statistics, 24)
    assert [block.shape[0] for block in result.moments] == [32, 16]
    whole = torch.block_diag(*statistics.moments)
    rotation = torch.block_diag(*[hadamard_matrix(8, torch.float64, torch.device("cpu"))] * 3)
    rotation = torch.kron(rotation, torch.eye(2, dtype=torch.float64))  # columns are [channel, position]
    torch.testing.assert_close(torch.block_diag(*result.moments), rotation @ whole @ rotation, atol=1e-12, rtol=0)


def test_several_rotations_in_one_compiled_graph() -> None:
    def layers(x: torch.Tensor) -> torch.Tensor:
        wide = rotated_input(torch.cat([rotated_input(x, -1) * 2, x], -1), -1)
        return wide + rotated_input(x.repeat(1, 2), -1)

    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True)
    x = random(3, 96, dtype=torch.float32)
    with torch.inference_mode():
        # The same operations in the same order; matrices of 2^5 and 2^6 are the same numbers made twice.
        assert torch.equal(compiled(x), layers(x))


def test_gradients_flow_after_inference_mode() -> None:
    with torch.inference_mode():
        rotated_input(random(2, 32, dtype=torch.float32), -1)
    x = random(2, 32, dtype=torch.float32).requires_grad_()
    rotated_input(x, -1).square().sum().backward()
    # The rotation keeps lengths, so the gradient of the squared length is 2 x; float32 sums of 32 terms.
    torch.testing.assert_close(x.grad, 2 * x.detach(), atol=1e-5, rtol=0)


def test_exporting_leaves_no_empty_matrix_behind() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return rotated_input(x, -1)

    torch.export.export(Layer(), (torch.zeros(2, 16, dtype=torch.float64),), strict=False)
    assert type(rotated_input(random(2, 16), -1)) is torch.Tensor
