"""Palettes: k-means against trying everything, sharing, and storing."""

from __future__ import annotations

import itertools

import pytest
import torch
from random_weights import random

from sdcompress.quant.formats.codebook import Codebook
from sdcompress.quant.k_means import k_means
from sdcompress.sources.spec import parameter


def slow_best(values: list[float], weights: list[float], count: int) -> float:
    """The least weighted squared error, over all ways of cutting the sorted values into `count` runs."""
    pairs = sorted(zip(values, weights, strict=True))
    best = float("inf")
    for cuts in itertools.combinations(range(1, len(pairs)), count - 1):
        total = 0.0
        for start, end in itertools.pairwise((0, *cuts, len(pairs))):
            run = pairs[start:end]
            centre = sum(v * w for v, w in run) / sum(w for _, w in run)
            total += sum(w * (v - centre) ** 2 for v, w in run)
        best = min(best, total)
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [2, 4])
def test_small_k_means_is_the_best_there_is(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, weights = torch.randn(14, generator=generator), torch.rand(14, generator=generator) + 0.1
    centres = k_means(values, weights, count).float()
    errors = (values[:, None] - centres).square().amin(1) * weights
    # The values are told apart in float16, 2^-11 of them, and centres are float32 here: far below one percent.
    assert float(errors.sum()) <= 1.01 * slow_best(values.tolist(), weights.tolist(), count) + 1e-9


@pytest.mark.parametrize(("bits", "sqnr_db"), [(2, 9.30), (3, 14.62), (4, 20.22), (6, 31.77), (8, 43.81)])
def test_normal_values_reach_the_known_optimum(bits: int, sqnr_db: float) -> None:
    """Max 1960, table I, for 4 to 16 levels; beyond, Panter and Dite's 6.02 bits - 4.35 dB."""
    values = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    centres = k_means(values, torch.ones(1), 2**bits).float()
    codes = torch.bucketize(values, (centres[1:] + centres[:-1]) / 2)
    measured = 10 * float((values.square().sum() / (values - centres[codes]).square().sum()).log10())
    # The sample's own variance of the ratio is 0.02 dB; k-means at 8 bits ends up to 0.2 dB from the optimum.
    assert measured > sqnr_db - (0.05 if bits < 8 else 0.25)


def test_fewer_numbers_than_centres() -> None:
    assert k_means(torch.tensor([1.0, -2.0, 1.0]), torch.ones(1), 4).tolist() == [-2.0, 1.0, 1.0, 1.0]
    assert k_means(torch.zeros(5), torch.ones(1), 4).tolist() == [0.0] * 4


@pytest.mark.parametrize("group", [None, 1, 3, 8])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_each_weight_goes_to_the_nearest_of_its_palette(group: int | None, bits: int) -> None:
    weight, shared = random(8, 6, 3, 3, seed=1), group or 8
    fmt = Codebook(f"codebook{bits}", bits, group)
    tensor = fmt.quantize(weight)
    assert tensor.palette is not None
    expected = torch.stack([tensor.palette[row // shared][tensor.codes[row].long()] for row in range(8)]).float()
    assert torch.equal(tensor.dequantize(torch.float32), expected)
    levels = tensor.palette.float().repeat_interleave(shared, 0)[:8, None]
    nearest = (weight.flatten(1)[:, :, None] - levels).abs().amin(2)
    # A value between two levels goes to either: the middle is a float32.
    assert torch.allclose((weight - expected).abs().flatten(1), nearest, atol=1e-6)
    size_bits = 8 * sum(spec.size_bytes for spec in fmt.stored(parameter(tuple(weight.shape), "F32")).values())
    assert size_bits == -(-weight.numel() * bits // 8) * 8 + 16 * 2**bits * -(-8 // shared)
