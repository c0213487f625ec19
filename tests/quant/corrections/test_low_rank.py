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
