"""Histograms of activations against numpy, and the ranges chosen from them against a slow search."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcompress.quant.activations import ActivationRange, choose_range, expected_error
from sdcompress.quant.histogram import BINS, SAMPLE, Histogram

SHAPES = {
    "normal": lambda generator, size: generator.normal(size=size),
    "one-sided": lambda generator, size: np.abs(generator.normal(size=size)) + 0.1,
    "outliers": lambda generator, size: np.where(generator.random(size) < 0.001, 50, generator.normal(size=size)),
    "two humps": lambda generator, size: generator.normal(size=size) + 8 * generator.integers(0, 2, size),
}

streams = st.lists(
    st.tuples(st.integers(0, 2**31), st.integers(1, SAMPLE), st.integers(-60, 60)), min_size=1, max_size=6
)


def tensors_of(stream: list[tuple[int, int, int]]) -> list[torch.Tensor]:
    """Normal values of any size between 2^-60 and 2^60, so that bins have to merge."""
    made = []
    for seed, size, exponent in stream:
        values = np.random.default_rng(seed).normal(size=size) * 2.0**exponent
        made.append(torch.from_numpy(values.astype(np.float32)))
    return made


def histogram_of(*tensors: torch.Tensor) -> Histogram:
    histogram = Histogram(sample=2**22)
    for tensor in tensors:
        histogram.add(tensor)
    return histogram


def drawn(shape: str, size: int = 20_000) -> torch.Tensor:
    return torch.from_numpy(SHAPES[shape](np.random.default_rng(0), size).astype(np.float32))


@settings(deadline=None, max_examples=60)
@given(streams)
def test_as_numpy_counts(stream: list[tuple[int, int, int]]) -> None:
    tensors = tensors_of(stream)
    histogram = histogram_of(*tensors)
    values = torch.cat(tensors).double().numpy()
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    assert histogram.count == values.size and histogram.tensors == len(tensors)
    # The bins' edges are powers of two times integers, so numpy's own comparisons with them are exact too.
    edges = histogram.edges.numpy()
    assert histogram.counts.tolist() == np.histogram(values, edges)[0].tolist()
    width = edges[1] - edges[0]
    assert width * BINS / 4 <= np.abs(values).max() < width * BINS / 2


@settings(deadline=None, max_examples=30)
@given(streams)
def test_the_order_of_the_tensors_does_not_matter(stream: list[tuple[int, int, int]]) -> None:
    tensors = tensors_of(stream)
    one, other = histogram_of(*tensors), Histogram(sample=2**22)
    for tensor in reversed(tensors):
        other.add(tensor)
        assert other.counts.sum() == other.count  # looking on the way changes nothing
    assert torch.equal(one.counts, other.counts) and torch.equal(one.edges, other.edges)


@settings(deadline=None, max_examples=60)
@given(streams, st.floats(0, 1))
def test_quantiles_are_right_to_within_a_bin(stream: list[tuple[int, int, int]], fraction: float) -> None:
    tensors = tensors_of(stream)
    histogram = histogram_of(*tensors)
    width = float(histogram.edges[1] - histogram.edges[0])
    values = torch.cat(tensors).double().numpy()
    # Both values that the fraction falls between, since a quantile between two of them is a matter of convention.
    below, above = (np.quantile(values, fraction, method=method) for method in ("lower", "higher"))
    rank = fraction * len(values)
    below = min(below, np.sort(values)[max(math.ceil(rank) - 1, 0)])
    assert below - width <= histogram.quantile(fraction) <= above + width


def test_of_large_tensors_a_sample_counts_but_extremes_are_exact() -> None:
    values = torch.zeros(2, 64, 128, 128)
    values[:, 1::2] = 1.0
    values[1, 3, 77, 5], values[0, 0, 0, 1] = 40.0, -7.0
    histogram = Histogram()
    histogram.add(values)
    assert (histogram.low, histogram.high, histogram.count) == (-7.0, 40.0, values.numel())
    counted = int(histogram.counts.sum())
    assert values.numel() / 16 <= counted < values.numel() / 12
    # Half of the values are ones, whichever way the channels lie.
    for layout in (values, values.permute(0, 2, 3, 1).contiguous()):
        again = Histogram()
        again.add(layout)
        ones = int(again.counts[torch.searchsorted(again.edges, torch.tensor(1.0).double(), right=True) - 1])
        assert ones == pytest.approx(counted / 2, rel=0.01)  # every channel is met within one of its 128 x 128


def test_small_tensors_are_counted_whole() -> None:
    histogram = Histogram()
    for size in (1, SAMPLE, 2 * SAMPLE - 1):
        histogram.add(torch.ones(size))
    assert int(histogram.counts.sum()) == histogram.count == 3 * SAMPLE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_no_values(dtype: torch.dtype) -> None:
    histogram = histogram_of(torch.empty(0, 3, dtype=dtype), torch.tensor([[0.5], [-2.0]], dtype=dtype))
    assert (histogram.low, histogram.high, histogram.count) == (-2.0, 0.5, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    histogram = Histogram()
    with pytest.raises(ValueError, match="1 of 6 values are NaN or infinite"):
        histogram.add(torch.tensor([[0.0, 1.0, bad], [1.0, 2.0, 3.0]]))
    assert histogram.count == 0


def test_an_empty_histogram_has_no_range() -> None:
    with pytest.raises(ValueError, match="no value was seen"):
        choose_range(Histogram())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [16, 256])
def test_expected_error_is_that_of_quantizing_the_values(shape: str, levels: int) -> None:
    values = drawn(shape)
    histogram = histogram_of(values)
    for chosen in (choose_range(histogram, levels, method) for method in ("minmax", "percentile", "mse")):
        scale, zero_point = chosen.scale_and_zero_point(levels)
        codes = (values.double() / scale).round().add(zero_point).clamp(0, levels - 1)
        measured = float(((codes - zero_point) * scale - values).square().mean())
        # 20,000 values: the mean of their squared rounding errors itself strays by 1/sqrt(20000) = 0.7 % of its size
        # (times their kurtosis); clipping errors are known to half a bin.
        assert expected_error(histogram, chosen, levels) == pytest.approx(measured, rel=0.05)


@settings(deadline=None, max_examples=40)
@given(streams, st.sampled_from([2, 16, 255, 256]))
def test_mse_is_never_worse_than_minmax(stream: list[tuple[int, int, int]], levels: int) -> None:
    histogram = histogram_of(*tensors_of(stream))
    chosen = choose_range(histogram, levels, "mse")
    assert min(histogram.low, 0) <= chosen.low <= 0 <= chosen.high <= max(histogram.high, 0)
    everything = choose_range(histogram, levels, "minmax")
    assert expected_error(histogram, chosen, levels) <= expected_error(histogram, everything, levels)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [16, 256])
def test_mse_against_a_search_of_all_pairs(shape: str, levels: int) -> None:
    histogram = histogram_of(drawn(shape, 4000))
    chosen = expected_error(histogram, choose_range(histogram, levels, "mse"), levels)
    lows = np.linspace(min(histogram.low, 0), 0, 25)
    highs = np.linspace(max(histogram.high, 0), 0, 40, endpoint=False)
    best = min(expected_error(histogram, ActivationRange(low, high), levels) for low in lows for high in highs)
    # The grid's steps are coarser than the search's; 2 % is for what a step of the finer one, 2^(1/32), may cost.
    assert chosen <= 1.02 * best


def test_percentile_cuts_both_ends_and_keeps_zero() -> None:
    histogram = histogram_of(torch.arange(-1000, 1001) / 1000)
    chosen = choose_range(histogram, method="percentile", percentile=90)
    assert chosen.low == pytest.approx(-0.9, abs=0.002) and chosen.high == pytest.approx(0.9, abs=0.002)
    assert choose_range(histogram_of(torch.full((9,), 3.0)), method="percentile").low == 0


@settings(deadline=None)
@given(
    st.floats(-(2.0**127), 0, width=32),
    st.floats(0, 2.0**127, width=32),
    st.sampled_from([2, 16, 255, 256, 65536]),
    st.booleans(),
)
def test_zero_has_a_code_and_the_range_is_covered(low: float, high: float, levels: int, unsigned: bool) -> None:
    scale, zero_point = ActivationRange(low, high).scale_and_zero_point(levels, unsigned)
    assert struct.unpack("f", struct.pack("f", scale))[0] == scale > 0
    first = 0 if unsigned else -(levels // 2)
    assert first <= zero_point <= first + levels - 1
    codes = [round(end / scale) + zero_point for end in (low, high)]
    # Rounding the zero point shifts the range by half a step at most, so the ends' codes are off by one at most.
    assert first - 1 <= codes[0] <= codes[1] <= first + levels


def test_known_scales_and_zero_points() -> None:
    assert ActivationRange(-1.0, 254.0).scale_and_zero_point() == (1.0, 1)
    assert ActivationRange(-1.0, 254.0).scale_and_zero_point(unsigned=False) == (1.0, -127)
    assert ActivationRange(0.0, 0.0).scale_and_zero_point() == (1.0, 0)
    assert ActivationRange(2.0, 25.5).scale_and_zero_point() == (pytest.approx(0.1), 0)  # zero is always covered
    assert ActivationRange(0.0, 1e-44).scale_and_zero_point()[0] == 2.0**-126
