"""Means and second moments of rows, in blocks: exact, bounded, refused where broken, and the same when continued."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_weights import random

from sdcompress.quant import statistics as module
from sdcompress.quant.statistics import Limits, MomentAccumulator, block_sizes, fitting_limit

# Float32 sums of n products lie within n 2^-24 of the sum of magnitudes (Higham, section 3.1); here n <= 1500.
SUM_ERROR = 1500 * 2.0**-24


def rows_of(count: int, columns: int, seed: int = 0) -> torch.Tensor:
    return random(count, columns, seed=seed) + 0.5


def accumulated(sizes: tuple[int, ...], *batches: torch.Tensor) -> MomentAccumulator:
    accumulator = MomentAccumulator(sizes)
    for batch in batches:
        accumulator.add(batch)
    return accumulator


@given(st.integers(1, 400), st.sampled_from([1, 4, 9, 15]), st.integers(1, 3000))
def test_blocks_are_even_whole_channels_within_the_limit(channels: int, multiple: int, limit: int) -> None:
    sizes = block_sizes(channels * multiple, multiple, limit)
    assert sum(sizes) == channels * multiple
    assert all(size % multiple == 0 and size <= max(limit, multiple) for size in sizes)
    assert max(sizes) - min(sizes) <= multiple
    fewest = -(-channels // max(limit // multiple, 1))
    assert len(sizes) == fewest


def test_known_blocks() -> None:
    assert block_sizes(3456, 9, 2048) == (1728, 1728)
    assert block_sizes(23040, 9, 2048) == (1926,) * 4 + (1917,) * 8  # 2560 channels over 12 blocks
    assert block_sizes(768, 1, 2048) == (768,)
    with pytest.raises(ValueError, match="10 columns are no whole number of channels of 9 columns"):
        block_sizes(10, 9, 100)


def test_a_component_s_blocks_fit_its_budget() -> None:
    layers = [(11520, 9), (1280, 1), (320, 1)]
    limits = Limits(columns=2048, blocks_bytes=20 * 2**20)
    limit = fitting_limit(layers, limits)
    taken = sum(4 * size**2 for layer in layers for size in block_sizes(*layer, limit))
    assert limits.blocks_bytes / 2 < taken <= limits.blocks_bytes
    assert fitting_limit(layers, Limits()) == Limits().columns  # all of it fits 2 GiB
    assert fitting_limit([(36, 9)], Limits(blocks_bytes=1)) >= 1  # a channel's own block is the least there is


@pytest.mark.parametrize("sizes", [(5,), (3, 4), (300, 257), (1,)])
def test_moments_are_those_of_all_rows(sizes: tuple[int, ...]) -> None:
    rows = rows_of(1500, sum(sizes))
    statistics = accumulated(sizes, *rows.split([1, 1000, 499])).statistics()
    exact = rows.double()
    moment, magnitudes = exact.T @ exact / 1500, exact.abs().T @ exact.abs() / 1500
    assert statistics.count == 1500
    assert torch.all((statistics.mean - exact.mean(0)).abs() <= SUM_ERROR * exact.abs().mean(0))
    start = 0
    for block, size in zip(statistics.moments, sizes, strict=True):
        part = slice(start, start + size)
        assert block.shape == (size, size) and block.dtype == torch.float32
        assert torch.all((block - moment[part, part]).abs() <= SUM_ERROR * magnitudes[part, part])
        assert torch.equal(block, block.T)
        start += size
    assert torch.equal(statistics.second_moment, torch.cat([block.diagonal() for block in statistics.moments]))
    assert torch.all((statistics.second_moment - exact.square().mean(0)).abs() <= SUM_ERROR * moment.diagonal())


def test_rows_may_be_written_over_once_they_are_added() -> None:
    """As layers do that work in place; few rows wait before they are multiplied."""
    rows = rows_of(3, 4)
    accumulator = accumulated((4,), rows)
    rows.zero_()
    accumulator.add(rows_of(3, 4, seed=1))
    expected = accumulated((4,), rows_of(3, 4), rows_of(3, 4, seed=1)).statistics()
    assert torch.equal(accumulator.statistics().moments[0], expected.moments[0])


def test_halves_are_added_up_as_floats() -> None:
    rows = torch.full((4, 2), 300.0, dtype=torch.float16)  # whose square is infinite in float16
    statistics = accumulated((2,), rows).statistics()
    assert torch.equal(statistics.moments[0], torch.full((2, 2), 9e4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    accumulator = accumulated((4,), rows_of(8, 4))
    before = accumulator.statistics()
    broken = rows_of(8, 4)
    broken[3, 1] = bad
    with pytest.raises(ValueError, match="1 of 32 values are NaN or infinite"):
        accumulator.add(broken)
    after = accumulator.statistics()
    assert after.count == before.count == 8 and torch.equal(after.moments[0], before.moments[0])


def test_sums_that_stay_on_a_device_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU has them; what is not finite is found at the end, without a wait in each layer."""
    batches = [rows_of(100, 300, seed) for seed in range(3)]
    expected = accumulated((200, 100), *batches).statistics()
    monkeypatch.setattr(module, "_DEFERRED", {"cpu"})
    deferred = accumulated((200, 100), *batches[:2])
    continued = MomentAccumulator((200, 100))
    continued.load_state_dict(deferred.state_dict(), torch.device("cpu"))
    continued.add(batches[2])
    found = continued.statistics()
    assert torch.equal(found.mean, expected.mean) and all(map(torch.equal, found.moments, expected.moments))
    batches[0][3, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 300 columns have values that are NaN or infinite"):
        accumulated((200, 100), *batches).statistics()


def test_what_does_not_fit_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="squares of its values do not fit float32"):
        accumulated((2,), torch.full((1, 2), 1e30)).statistics()
    with pytest.raises(ValueError, match="no row was seen"):
        MomentAccumulator((2,)).statistics()


def test_continued_from_its_state_it_is_the_same() -> None:
    batches = [rows_of(100, 300, seed) for seed in range(4)]
    whole = accumulated((200, 100), *batches)
    state = accumulated((200, 100), *batches[:2]).state_dict()
    continued = MomentAccumulator((200, 100))
    continued.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    assert continued.calls == 2
    for batch in batches[2:]:
        continued.add(batch)
    assert (continued.count, continued.calls) == (whole.count, whole.calls)
    one, other = whole.statistics(), continued.statistics()
    assert torch.equal(one.mean, other.mean)
    assert all(torch.equal(a, b) for a, b in zip(one.moments, other.moments, strict=True))
    fresh = MomentAccumulator((2,))
    fresh.load_state_dict(MomentAccumulator((2,)).state_dict())
    assert not fresh.calls
