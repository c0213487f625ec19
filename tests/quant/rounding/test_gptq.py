"""gptq against a slow textbook version, and against what it promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_weights import random

from sdcompress.quant.grid import Grid
from sdcompress.quant.registry import from_label, known_formats
from sdcompress.quant.rounding.gptq import GPTQ, gptq_codes, unit_factor
from sdcompress.quant.rounding.search import Search, WeightedSearch
from sdcompress.quant.statistics import LayerStatistics

FORMATS = sorted(name for name, fmt in known_formats().items() if fmt.roundings is None or "gptq" in fmt.roundings)


def correlated(columns: int, seed: int = 0) -> torch.Tensor:
    """E[x x^T] [columns, columns] of inputs that are mixtures of half as many."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(800, max(1, columns // 2), generator=generator)
    rows = mixed @ torch.randn(mixed.shape[1], columns, generator=generator) + 0.1 * torch.randn(
        800, columns, generator=generator
    )
    return rows.T @ rows / 800


def statistics_of(*sizes: int) -> LayerStatistics:
    return LayerStatistics(
        800, torch.zeros(sum(sizes)), tuple(correlated(size, seed) for seed, size in enumerate(sizes))
    )


def output_error(weight: torch.Tensor, tensor: Any, statistics: LayerStatistics) -> float:
    errors = (weight - tensor.dequantize(torch.float32)).double().flatten(1)
    parts = errors.split([len(block) for block in statistics.moments], dim=1)
    return sum(float(((e @ m.double()) * e).sum()) for e, m in zip(parts, statistics.moments, strict=True))


def textbook(
    weight: torch.Tensor, grid: Grid, groups: torch.Tensor, moment: torch.Tensor, damping: float
) -> torch.Tensor:
    """Codes by Optimal Brain Quantization in a fixed order (arXiv:2210.17323), its inverse explicit."""
    weight, hessian = weight.double().clone(), moment.double()
    hessian = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    inverse = torch.linalg.inv(hessian)
    codes = torch.zeros(weight.shape)
    for column in moment.diagonal().argsort(stable=True).flip(0).tolist():
        code = grid.encode(weight[:, column : column + 1].float(), groups[column : column + 1])
        close = grid.decode(code, groups[column : column + 1]).double()
        codes[:, column] = code[:, 0]
        error = (weight[:, column] - close[:, 0]) / inverse[column, column]
        weight -= error[:, None] * inverse[column]
        weight[:, column] = close[:, 0]
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column], inverse[:, column], inverse[column, column] = 0, 0, 1
    return codes


@pytest.mark.parametrize("name", ["int3", "uint2", "normal-float4", "codebook3"])
@pytest.mark.parametrize("columns", [5, 40, 300])
def test_equals_the_textbook(name: str, columns: int) -> None:
    weight = random(6, columns, seed=2)
    fmt: Any = from_label(name)
    grid, moment = fmt.fit(weight, None, search=True), correlated(columns)
    groups = fmt.layout(tuple(weight.shape)).group_of_columns()
    fast = gptq_codes(weight, grid, groups, moment, 0.01)
    slow = textbook(weight, grid, groups, moment, 0.01)
    rows = (fast != slow).any(dim=1)
    # float32 against float64: a target on the edge between two codes may fall to either side, and then the rest of its
    # row goes another way. With 1800 targets and an error of some 1e-6 steps that is one row in hundreds.
    assert int(rows.sum()) <= (1 if columns == 300 else 0)


def test_the_factor_is_the_moments() -> None:
    moment = correlated(30)
    factor = unit_factor(moment, 0.01).double()
    damped = moment.double() + 0.01 * float(moment.double().diagonal().mean()) * torch.eye(30, dtype=torch.float64)
    inner = torch.linalg.solve_triangular(factor, damped, upper=False)
    inner = torch.linalg.solve_triangular(factor, inner.T, upper=False)
    # The factor was rounded to float32.
    assert torch.allclose(inner, torch.diag(inner.diagonal()), atol=1e-5 * float(damped.max()))
    assert torch.equal(factor.diagonal(), torch.ones(30, dtype=torch.float64))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(16, 72), (6, 20, 3, 3)])
def test_the_output_is_never_worse_than_weighted_search(name: str, shape: tuple[int, ...]) -> None:
    weight = random(*shape, seed=3)
    columns = weight[0].numel()
    statistics = statistics_of(columns // 2, columns - columns // 2)
    fmt: Any = from_label(f"{name}/8" if "codebook" in name else name)
    ours = output_error(weight, GPTQ().quantize(weight, fmt, statistics), statistics)
    # The comparison inside is of float32 sums.
    assert ours <= output_error(weight, WeightedSearch().quantize(weight, fmt, statistics), statistics) * (1 + 1e-4)


def test_correlated_inputs_gain_much() -> None:
    weight, statistics = random(32, 128, seed=4), statistics_of(128)
    fmt: Any = from_label("int4")
    ours = output_error(weight, GPTQ().quantize(weight, fmt, statistics), statistics)
    # Half of the directions carry hardly anything, so that half of the error has somewhere to go.
    assert ours < 0.5 * output_error(weight, Search().quantize(weight, fmt, None), statistics)


def test_uncorrelated_inputs_change_nothing() -> None:
    weight = random(4, 32, seed=5)
    fmt: Any = from_label("int4")
    grid, groups = fmt.fit(weight, None, search=True), torch.zeros(32, dtype=torch.int64)
    assert torch.equal(gptq_codes(weight, grid, groups, torch.eye(32), 0.01), fmt.nearest(weight, grid))


def test_dead_columns_and_dead_layers() -> None:
    weight = random(4, 32, seed=6)
    fmt: Any = from_label("int4")
    moment = correlated(32)
    moment[3], moment[:, 3] = 0, 0
    some = GPTQ().quantize(weight, fmt, LayerStatistics(1, torch.zeros(32), (moment,)))
    none = GPTQ().quantize(weight, fmt, LayerStatistics(1, torch.zeros(32), (torch.zeros(32, 32),)))
    for tensor in (some, none):
        # A range of 16 codes over 32 normal values, at most 6 wide; the widest half step and what the widening adds.
        assert float((tensor.dequantize(torch.float32)[:, 3] - weight[:, 3]).abs().max()) < 6 / 15


def test_a_moment_that_is_not_positive_definite_is_damped_more() -> None:
    moment = torch.ones(4, 4)  # rank 1
    moment[0, 1] = moment[1, 0] = 1.05  # and a negative eigenvalue, as rounding can leave
    assert bool(unit_factor(moment, 0.01).isfinite().all())


def test_the_same_twice_and_nan_is_refused() -> None:
    weight, statistics = random(8, 64, seed=7), statistics_of(64)
    fmt: Any = from_label("uint3+scale8")
    first, second = (GPTQ().quantize(weight, fmt, statistics).parts() for _ in range(2))
    assert all(torch.equal(first[part], second[part]) for part in first)
    weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="1 of 512 values are NaN or infinite"):
        GPTQ().quantize(weight, fmt, statistics)
