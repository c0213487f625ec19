"""Histograms of activations, gathered in one pass and in bounded memory."""

from __future__ import annotations

import math
from functools import cache

import torch

BINS = 4096  # half of them on each side of zero, so at least 1024 up to the largest magnitude
SAMPLE = 2**12  # least number of values that are counted of a tensor, if it has so many
SHARE = 16  # of large tensors, one value in so many is counted
_BUFFER = 2**15  # values counted at once
_LIMIT = 2.0**128  # of float32
_SMALLEST_EXPONENT = -100  # keeps the reciprocal of a bin's width within float32


class Histogram:
    """Exact extremes and count of the values in a stream of tensors, and a histogram of a sample, in bounded memory.

    The bins lie evenly in (-limit, limit), limit being the power of two above the largest magnitude so far. When that
    grows, neighbouring bins merge, so the result does not depend on the order of the tensors. Of a tensor with more
    than `sample` values only every n-th is counted, at least `sample` or one in SHARE; n has no factor in common with
    the number of values, so that no channel or position is left out. `low`, `high` and `count` are of all values.

    Args:
        sample: least number of values that are counted of a tensor.

    Examples:
        >>> histogram = Histogram()
        >>> histogram.add(torch.tensor([-1.0, 0.5, 3.0]))
        >>> histogram.low, histogram.high, int(histogram.counts.sum())
        (-1.0, 3.0, 3)
    """

    def __init__(self, sample: int = SAMPLE):
        self.low, self.high = math.inf, -math.inf
        self.count = 0  # values seen
        self.tensors = 0  # tensors seen
        self._sample = sample
        self._exponent = _SMALLEST_EXPONENT  # of the limit
        self._counts: torch.Tensor | None = None  # [BINS]
        self._buffer: torch.Tensor | None = None  # [_BUFFER]
        self._filled = 0

    def add(self, tensor: torch.Tensor) -> None:
        """Count the values of `tensor`, of any shape and floating-point type.

        Raises:
            ValueError: a value is NaN or infinite, or beyond float32.
        """
        if not tensor.numel():
            return
        low, high = torch.stack(torch.aminmax(tensor)).tolist()  # both NaN where there is one
        if not -_LIMIT < low <= high < _LIMIT:
            bad = int((~tensor.float().isfinite()).sum())
            raise ValueError(f"{bad} of {tensor.numel()} values are NaN or infinite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += tensor.numel()
        self.tensors += 1
        stride = _stride(tensor.numel(), self._sample)
        values = tensor.reshape(-1)
        values = values if stride == 1 else values[::stride]
        for part in values.split(_BUFFER) if values.numel() > _BUFFER else (values,):
            self._take(part)

    @property
    def counts(self) -> torch.Tensor:
        """Number of values in each bin, [BINS] int64."""
        self._count_buffer()
        self._buffer = None
        return torch.zeros(BINS, dtype=torch.int64) if self._counts is None else self._counts

    @property
    def edges(self) -> torch.Tensor:
        """Edges of the bins, [BINS + 1] float64."""
        self._count_buffer()
        width = math.ldexp(2 / BINS, self._exponent)
        return torch.arange(-BINS // 2, BINS // 2 + 1, dtype=torch.float64) * width

    def quantile(self, fraction: float) -> float:
        """Return the value below which that fraction (0 to 1) of the counted values lies, to within a bin.

        Raises:
            ValueError: no value was added.
        """
        self.check_seen()
        cumulative = self.counts.cumsum(0).double()
        rank = torch.tensor(fraction, dtype=torch.float64) * cumulative[-1]
        bin_index = min(int(torch.searchsorted(cumulative, rank)), BINS - 1)
        inside = float(self.counts[bin_index])
        below = float(cumulative[bin_index]) - inside
        left, right = (float(edge) for edge in self.edges[bin_index : bin_index + 2])
        value = left + (right - left) * ((float(rank) - below) / inside if inside else 0.0)
        return min(max(value, self.low), self.high)

    def check_seen(self) -> None:
        """Raise ValueError when no value was added."""
        if not self.count:
            raise ValueError("no value was seen, so there is no range to choose")

    def _take(self, values: torch.Tensor) -> None:
        if self._filled + values.numel() > _BUFFER:
            self._count_buffer()
        if self._buffer is None:
            self._buffer = torch.empty(_BUFFER)
        self._buffer[self._filled : self._filled + values.numel()].copy_(values)
        self._filled += values.numel()

    def _count_buffer(self) -> None:
        if not self._filled or self._buffer is None:
            return
        largest = max(-self.low, self.high)
        self._grow(max(math.frexp(largest)[1], _SMALLEST_EXPONENT) if largest else _SMALLEST_EXPONENT)
        # Dividing by a power of two is exact, so a value's bin is the same whenever it is counted.
        scaled = self._buffer[: self._filled].mul_(math.ldexp(BINS / 2, -self._exponent)).floor_()
        bins = scaled.add_(BINS // 2).to(torch.int32)
        counts = torch.bincount(bins, minlength=BINS)
        self._counts = counts if self._counts is None else self._counts.add_(counts)
        self._filled = 0

    def _grow(self, exponent: int) -> None:
        """Widen the limit to 2^exponent by merging bins."""
        shift = min(max(exponent - self._exponent, 0), (BINS // 2).bit_length() - 1)
        self._exponent = max(exponent, self._exponent)
        if self._counts is None or not shift:
            return
        merged = self._counts.view(-1, 2**shift).sum(1)
        start = (BINS - merged.numel()) // 2
        self._counts = torch.zeros_like(self._counts)
        self._counts[start : start + merged.numel()] = merged


@cache
def _stride(numel: int, sample: int) -> int:
    """Return the widest stride that counts enough of `numel` values and has no factor in common with `numel`."""
    stride = max(min(numel // sample, SHARE), 1)
    while math.gcd(stride, numel) > 1:
        stride -= 1
    return stride
