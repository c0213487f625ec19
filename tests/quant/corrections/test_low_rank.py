"""The split against Eckart and Young's bound, a singular value decomposition of numpy's, and itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_weights import random, statistics_of

from sdcompress.quant.corrections.low_rank import product, split
from sdcompress.quant.statistics import LayerStatistics

SHAPES = [(12, 40), (40, 12), (16, 6, 3, 3), (70, 6, 3, 3), (9, 9)]
HALF = 2.0**-11  # what float16 rounds by, relatively


def correlated(columns: int, sizes: tuple[int, ...], seed: int = 1) -> LayerStatistics:
    rows = random(300, columns, seed=seed) @ random(columns, columns, seed=seed + 1)
    return statistics_of(rows * torch.linspace(0.01, 3, columns), *sizes)


def root_of(statistics: LayerStatistics) -> np.ndarray:
    """[columns, columns]: S with S S^T = M."""
    values, vectors = np.linalg.eigh(torch.block_diag(*statistics.moments).double().numpy())
    return vectors * np.sqrt(np.maximum(values, 0))


def norm_of_error(weight: torch.Tensor, up: torch.Tensor, down: torch.Tensor, root: np.ndarray | None) -> float:
    error = (weight.flatten(1).double() - up.double() @ down.double()).numpy()
    return float(np.linalg.norm(error if root is None else error @ root))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("blocks", [None, 1, 2])
def test_no_product_of_that_rank_is_nearer(shape: tuple[int, ...], rank: int, blocks: int | None) -> None:
    """Eckart and Young: what is left has the norm of the singular values beyond the rank."""
    weight = random(*shape)
    columns = weight[0].numel()
    statistics = None
    if blocks:
        first = columns // blocks
        statistics = correlated(columns, (first, columns - first) if blocks == 2 else (columns,))
    root = None if statistics is None else root_of(statistics)
    up, down = split(weight, rank, statistics)
    assert up.shape == (shape[0], rank) and down.shape == (rank, columns)
    assert up.dtype == down.dtype == torch.float16
    exact = weight.flatten(1).double().numpy()
    exact = exact if root is None else exact @ root
    bound = float(np.linalg.norm(np.linalg.svd(exact, compute_uv=False)[rank:]))
    error = norm_of_error(weight, up, down, root)
    # Each half is rounded to float16, which moves the product by at most twice that, in a norm that M may stretch.
    size = (up.double().abs() @ down.double().abs()).numpy()
    slack = 2.1 * HALF * float(np.linalg.norm(size if root is None else size @ np.abs(root)))
    assert bound * (1 - 1e-6) <= error <= bound + slack


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_a_truncated_singular_value_decomposition(shape: tuple[int, ...]) -> None:
    weight = random(*shape)
    left, values, right = np.linalg.svd(weight.flatten(1).double().numpy(), full_matrices=False)
    expected = torch.from_numpy(left[:, :4] * values[:4] @ right[:4]).float().view(shape)
    # Both halves are rounded to float16; the products of a row and a column are below 10.
    torch.testing.assert_close(product(*split(weight, 4), shape), expected, atol=20 * HALF, rtol=0)


def test_what_has_a_low_rank_is_found_whole() -> None:
    weight = random(30, 3) @ random(3, 50, seed=1)
    for statistics in (None, correlated(50, (20, 30))):
        close = product(*split(weight, 3, statistics), (30, 50))
        torch.testing.assert_close(close, weight, atol=3 * 2 * HALF * 10, rtol=0)  # three products below 10


def test_output_counts_where_the_inputs_are_known() -> None:
    weight, statistics = random(24, 60), correlated(60, (60,))
    root = root_of(statistics)
    blind, seeing = split(weight, 6), split(weight, 6, statistics)
    assert norm_of_error(weight, *seeing, root) < norm_of_error(weight, *blind, root)
    assert norm_of_error(weight, *blind, None) < norm_of_error(weight, *seeing, None)


def test_small_and_zero_weights_do_not_vanish_or_divide_by_zero() -> None:
    weight = random(20, 30) * 1e-6  # below float16's smallest normal number
    close = product(*split(weight, 4), (20, 30))
    expected = product(*split(weight * 1e6, 4), (20, 30)) * 1e-6
    torch.testing.assert_close(close, expected, atol=1e-6 * 20 * HALF, rtol=0)
    zero = product(*split(torch.zeros(20, 30), 4), (20, 30))
    assert torch.equal(zero, torch.zeros(20, 30))


def test_columns_never_used_do_not_matter() -> None:
    weight, statistics = random(10, 20), correlated(20, (20,))
    moment = statistics.moments[0].clone()
    moment[3], moment[:, 3] = 0, 0
    up, down = split(weight, 2, LayerStatistics(300, statistics.mean, (moment,)))
    assert bool(up.isfinite().all()) and bool(down.isfinite().all())


def test_the_same_bytes_every_time_and_from_half_precision() -> None:
    weight, statistics = random(16, 8, 3, 3).half(), correlated(72, (36, 36))
    first, second = split(weight, 4, statistics), split(weight.float(), 4, statistics)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
