"""Ranges of activations for static quantization, chosen from histograms.

Uniform affine quantization, eq. 4 to 7 of Nagel et al. 2021 (arXiv:2106.08295): a code k in [0, levels - 1] stands for
s (k - z). The range [-s z, s (levels - 1 - z)] is chosen as in their section 3.1: `minmax`, or `mse`, which minimises
the squared error between the values and what their codes stand for; `percentile` is the calibration of Wu et al. 2020
(arXiv:2004.09602), section 5. Zero always has a code of its own, as padding and ONNX's zero points need.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Literal

import torch

from sdcompress.quant.histogram import Histogram

Method = Literal["mse", "minmax", "percentile"]

PERCENTILE = 99.99  # one of the values that Wu et al. compare
_SMALLEST_SCALE = 2.0**-126  # float32's smallest normal number


@dataclass(frozen=True)
class ActivationRange:
    """The values that codes cover, which include zero. Values outside are clipped.

    Examples:
        >>> ActivationRange(-1.0, 254.0).scale_and_zero_point()
        (1.0, 1)
    """

    low: float
    high: float

    def scale_and_zero_point(self, levels: int = 256, unsigned: bool = True) -> tuple[float, int]:
        """Return the step between codes (the value of a float32) and the code of zero.

        A range of zero width stands for the value zero alone; its scale is 1.

        Args:
            levels: number of codes.
            unsigned: whether codes run from 0 to levels - 1; else from -levels / 2.
        """
        width = max(self.high, 0.0) - min(self.low, 0.0)
        scale = max(_float32(width / (levels - 1)), _SMALLEST_SCALE) if width > 0 else 1.0
        zero_point = round(-min(self.low, 0.0) / scale)
        return scale, zero_point if unsigned else zero_point - levels // 2


@dataclass(frozen=True)
class LayerRanges:
    """The calibrated ranges of one layer.

    Args:
        input: of its input, without the first token where that has a range of its own.
        output: of a convolution's output.
        first_token: of the start-of-text token's row, in linear layers that read text.
    """

    input: ActivationRange
    output: ActivationRange | None = None
    first_token: ActivationRange | None = None


def choose_range(
    histogram: Histogram, levels: int = 256, method: Method = "mse", percentile: float = PERCENTILE
) -> ActivationRange:
    """Return the range that codes should cover for the values in a histogram.

    Args:
        histogram: of the activations.
        levels: number of codes.
        method: `minmax`: all values; `percentile`: the middle `percentile` per cent; `mse`: the range with the
            smallest expected squared error.
        percentile: in per cent.

    Raises:
        ValueError: the histogram is empty.

    Examples:
        >>> histogram = Histogram()
        >>> histogram.add(torch.linspace(-1, 3, 1001))
        >>> choose_range(histogram, method="minmax")
        ActivationRange(low=-1.0, high=3.0)
    """
    histogram.check_seen()
    if method == "percentile":
        beyond = (1 - percentile / 100) / 2
        low, high = histogram.quantile(beyond), histogram.quantile(1 - beyond)
        return ActivationRange(min(low, 0.0), max(high, 0.0))
    everything = ActivationRange(min(histogram.low, 0.0), max(histogram.high, 0.0))
    return everything if method == "minmax" or everything.low == everything.high else _least_error(histogram, levels)


def expected_error(histogram: Histogram, chosen: ActivationRange, levels: int = 256) -> float:
    """Return the mean squared error, of rounding and clipping, of the counted values for `levels` codes on the range.

    Values are assumed to lie evenly within their bin.

    Raises:
        ValueError: the histogram is empty.
    """
    histogram.check_seen()
    bounds = torch.tensor([[chosen.low, chosen.high]], dtype=torch.float64)
    return float(_errors(bounds, levels, *_pieces(histogram))[0])


def _least_error(histogram: Histogram, levels: int) -> ActivationRange:
    """Return the best range found by shrinking both ends together, then each in turn, coarsely and then finely."""
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
    """Return left edges, right edges (within the exact extremes) and shares of the values, of all occupied bins."""
    edges, counts = histogram.edges, histogram.counts
    occupied = counts.nonzero().squeeze(1)
    left = edges[occupied].clamp(histogram.low, histogram.high)
    right = edges[occupied + 1].clamp(histogram.low, histogram.high)
    return left, right, counts[occupied].double() / counts.sum()


def _errors(
    bounds: torch.Tensor, levels: int, left: torch.Tensor, right: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """Return the mean squared error for each candidate range, [candidates]; bounds: [candidates, 2], the rest: [bins].

    With n the clamped code of x less the zero point, the integral of (x - s n)^2 from 0 to x is
    n s^3 / 12 + (x - s n)^3 / 3: each whole step in between adds s^3 / 12. Clipping is the case of a clamped n.
    """
    width = bounds[:, 1] - bounds[:, 0]
    scale = (width / (levels - 1)).float().double().clamp(min=_SMALLEST_SCALE)[:, None]  # [candidates, 1]
    zero_point = (-bounds[:, :1] / scale).round()

    def code(x: torch.Tensor) -> torch.Tensor:
        return torch.minimum(torch.maximum((x / scale).round(), -zero_point), levels - 1 - zero_point)

    def integral(x: torch.Tensor) -> torch.Tensor:
        n = code(x)
        return n * scale**3 / 12 + (x - n * scale) ** 3 / 3

    span = right - left
    # A bin that an extreme cuts down to almost nothing counts as a point: its integrals would cancel.
    narrow = span <= float(span.max()) * 2.0**-20
    middle = (left + right) / 2
    at_point = (middle - code(middle) * scale) ** 2
    within = (integral(right) - integral(left)) / torch.where(narrow, 1.0, span)
    errors = (torch.where(narrow, at_point, within) * shares).sum(1)
    return torch.where(width > 0, errors, math.inf)


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])
