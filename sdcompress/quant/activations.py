"""Ranges of activations for static quantization: histograms gathered in one pass, and the clipping range they ask for.

Uniform affine quantization, eq. 4 to 7 of Nagel et al. 2021 (arXiv:2106.08295): a code k in [0, levels - 1] stands for
s (k - z). The range [-s z, s (levels - 1 - z)] is chosen as in their section 3.1: `minmax`, or `mse`, which minimises
the squared error between the values and what their codes stand for; `percentile` is the calibration of Wu et al. 2020
(arXiv:2004.09602), section 5. Zero always has a code of its own, as padding and ONNX' zero points need.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Method = Literal["mse", "minmax", "percentile"]

BINS = 4096  # half of them on each side of zero, so at least 1024 up to the largest magnitude
SAMPLE = 2**12  # values of one tensor that are counted at least, if it has them
SHARE = 16  # and of large tensors one in so many
PERCENTILE = 99.99  # per cent; among the values Wu et al. compare
_BUFFER = 2**15  # values counted at once
_LIMIT = 2.0**128  # of float32
_SMALLEST_EXPONENT = -100  # keeps the reciprocal of a bin's width within float32
_SMALLEST_SCALE = 2.0**-126  # float32's smallest normal number


class Histogram:
    """What a stream of tensors holds: exact extremes and count, and a histogram of a sample, in bounded memory.

    The bins lie evenly in (-limit, limit), limit being the power of two above the largest magnitude so far. When that
    grows, neighbouring bins merge, so the result does not depend on the order of the tensors. Of a tensor with more
    than `sample` values only every n-th is counted, at least `sample` or one in SHARE; n has no factor in common with
    the number of values, so that no channel or position is left out. `low`, `high` and `count` are of all values
    nevertheless.
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
        """Takes in the values of `tensor`, of any shape and floating-point type. ValueError on NaN or Inf."""
        import torch

        if not tensor.numel():
            return
        least, largest = torch.aminmax(tensor)  # both NaN where there is one
        low, high = least.item(), largest.item()
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
        """Counted values in each bin; [BINS], int64."""
        import torch

        self._count_buffer()
        self._buffer = None
        return torch.zeros(BINS, dtype=torch.int64) if self._counts is None else self._counts

    @property
    def edges(self) -> torch.Tensor:
        """The bins' edges; [BINS + 1], float64."""
        import torch

        self._count_buffer()
        width = math.ldexp(2 / BINS, self._exponent)
        return torch.arange(-BINS // 2, BINS // 2 + 1, dtype=torch.float64) * width

    def quantile(self, fraction: float) -> float:
        """The value below which that fraction of the counted values lies, to within a bin. ValueError when empty."""
        import torch

        _check_seen(self)
        cumulative = self.counts.cumsum(0).double()
        rank = torch.tensor(fraction, dtype=torch.float64) * cumulative[-1]
        bin_index = min(int(torch.searchsorted(cumulative, rank)), BINS - 1)
        inside = float(self.counts[bin_index])
        below = float(cumulative[bin_index]) - inside
        left, right = (float(edge) for edge in self.edges[bin_index : bin_index + 2])
        value = left + (right - left) * ((float(rank) - below) / inside if inside else 0.0)
        return min(max(value, self.low), self.high)

    def _take(self, values: torch.Tensor) -> None:
        import torch

        if self._filled + values.numel() > _BUFFER:
            self._count_buffer()
        if self._buffer is None:
            self._buffer = torch.empty(_BUFFER)
        self._buffer[self._filled : self._filled + values.numel()].copy_(values)
        self._filled += values.numel()

    def _count_buffer(self) -> None:
        import torch

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
        """Widens the limit to 2^exponent, merging bins."""
        import torch

        shift = min(max(exponent - self._exponent, 0), (BINS // 2).bit_length() - 1)
        self._exponent = max(exponent, self._exponent)
        if self._counts is None or not shift:
            return
        merged = self._counts.view(-1, 2**shift).sum(1)
        start = (BINS - merged.numel()) // 2
        self._counts = torch.zeros_like(self._counts)
        self._counts[start : start + merged.numel()] = merged


@dataclass(frozen=True)
class ActivationRange:
    """The values that codes should cover; values outside are clipped. Holds zero."""

    low: float
    high: float

    def scale_and_zero_point(self, levels: int = 256, unsigned: bool = True) -> tuple[float, int]:
        """The step between codes (a float32's value) and the code of zero.

        Codes run from 0 to levels - 1, or with `unsigned` False from -levels / 2. Of a range of zero width only the
        value zero is meant: its scale is 1.
        """
        width = max(self.high, 0.0) - min(self.low, 0.0)
        scale = max(_float32(width / (levels - 1)), _SMALLEST_SCALE) if width > 0 else 1.0
        zero_point = round(-min(self.low, 0.0) / scale)
        return scale, zero_point if unsigned else zero_point - levels // 2


@dataclass(frozen=True)
class LayerRanges:
    """The calibrated ranges of one layer. `first_token` is that of the start-of-text token's row, if it is apart."""

    input: ActivationRange
    output: ActivationRange | None = None  # convolutions
    first_token: ActivationRange | None = None  # linear layers on text


def choose_range(
    histogram: Histogram, levels: int = 256, method: Method = "mse", percentile: float = PERCENTILE
) -> ActivationRange:
    """The range that codes should cover for the values in `histogram`; it always holds zero. ValueError when empty.

    minmax: all of them. percentile: the middle `percentile` per cent. mse: the range with the smallest expected
    squared error of `levels` codes.
    """
    _check_seen(histogram)
    if method == "percentile":
        beyond = (1 - percentile / 100) / 2
        low, high = histogram.quantile(beyond), histogram.quantile(1 - beyond)
        return ActivationRange(min(low, 0.0), max(high, 0.0))
    everything = ActivationRange(min(histogram.low, 0.0), max(histogram.high, 0.0))
    return everything if method == "minmax" or everything.low == everything.high else _least_error(histogram, levels)


def expected_error(histogram: Histogram, chosen: ActivationRange, levels: int = 256) -> float:
    """Mean squared error of the counted values when `levels` codes cover the range, in squared units of the values.

    Rounding and clipping alike; values are taken to lie evenly within their bin. ValueError when empty.
    """
    import torch

    _check_seen(histogram)
    bounds = torch.tensor([[chosen.low, chosen.high]], dtype=torch.float64)
    return float(_errors(bounds, levels, *_pieces(histogram))[0])


def _least_error(histogram: Histogram, levels: int) -> ActivationRange:
    """Both ends shrunk together first, then each in turn, coarsely and finely; never worse than not shrinking."""
    import torch

    full = torch.tensor([min(histogram.low, 0.0), max(histogram.high, 0.0)], dtype=torch.float64)
    pieces = _pieces(histogram)
    coarse = torch.pow(2.0, -torch.arange(48, dtype=torch.float64) / 4)
    fine = torch.pow(2.0, torch.arange(-8, 9, dtype=torch.float64) / 32)
    best, least = full, float(_errors(full[None], levels, *pieces)[0])

    def consider(candidates: torch.Tensor) -> bool:
        nonlocal best, least
        errors = _errors(candidates, levels, *pieces)
        place = int(errors.argmin())
        better = float(errors[place]) < least
        if better:
            best, least = candidates[place], float(errors[place])
        return better

    consider(coarse[:, None] * full)
    for factors in (torch.cat([coarse, coarse.new_zeros(1)]), fine):
        for _ in range(4):
            moved = False
            for side in (0, 1):
                candidates = best.repeat(len(factors), 1)
                start = best if factors is fine else full
                candidates[:, side] = (factors * start[side]).clamp(full[0], full[1])
                moved |= consider(candidates)
            if not moved:
                break
    return ActivationRange(float(best[0]), float(best[1]))


def _pieces(histogram: Histogram) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The occupied bins: left edges, right edges (within the exact extremes) and shares of the counted values."""
    edges, counts = histogram.edges, histogram.counts
    occupied = counts.nonzero().squeeze(1)
    left = edges[occupied].clamp(histogram.low, histogram.high)
    right = edges[occupied + 1].clamp(histogram.low, histogram.high)
    return left, right, counts[occupied].double() / counts.sum()


def _errors(
    bounds: torch.Tensor, levels: int, left: torch.Tensor, right: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """Mean squared error for each candidate range; bounds: [candidates, 2], the rest: [pieces].

    With n the clamped code of x less the zero point, the integral of (x - s n)^2 from 0 to x is
    n s^3 / 12 + (x - s n)^3 / 3: each whole step in between adds s^3 / 12. Clipping is the case of a clamped n.
    """
    import torch

    width = bounds[:, 1] - bounds[:, 0]
    scale = (width / (levels - 1)).float().double().clamp(min=_SMALLEST_SCALE)[:, None]  # [candidates, 1]
    zero_point = (-bounds[:, :1] / scale).round()

    def code(x: torch.Tensor) -> torch.Tensor:
        return torch.minimum(torch.maximum((x / scale).round(), -zero_point), levels - 1 - zero_point)

    def integral(x: torch.Tensor) -> torch.Tensor:
        n = code(x)
        return n * scale**3 / 12 + (x - n * scale) ** 3 / 3

    span = right - left
    # A bin cut down to next to nothing by an extreme counts as a point: its integrals would only cancel.
    narrow = span <= float(span.max()) * 2.0**-20
    middle = (left + right) / 2
    at_point = (middle - code(middle) * scale) ** 2
    within = (integral(right) - integral(left)) / torch.where(narrow, 1.0, span)
    errors = (torch.where(narrow, at_point, within) * shares).sum(1)
    return torch.where(width > 0, errors, math.inf)


@cache
def _stride(numel: int, sample: int) -> int:
    """The widest stride that counts enough of `numel` values, then down to one with no factor in common with them."""
    stride = max(min(numel // sample, SHARE), 1)
    while math.gcd(stride, numel) > 1:
        stride -= 1
    return stride


def _check_seen(histogram: Histogram) -> None:
    if not histogram.count:
        raise ValueError("no value was seen, so there is no range to choose")


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])
