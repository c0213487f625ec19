"""Scales and zero points with the smallest error: a search over clipping ranges, each improved by least squares.

The error is sum h (w - w')^2 over each group, h being the importance of a weight's column: 1 (the mean squared error,
as in section 3.1 of Nagel et al. 2021, arXiv:2106.08295), or the second moment of the activations that the column is
multiplied with, which makes it the error of the layer's output as far as columns are uncorrelated. For given levels L
the best scale is s = sum h w L / sum h L^2, and the error left is sum h w^2 - (sum h w L)^2 / sum h L^2. So a range is
judged by the error after the fit, not by its own. With a zero point, the same holds of w and L minus their means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sdcompress.quant.scales import LARGEST_SCALE, SMALLEST_SCALE

PIECE = 2**18  # weights searched at once, so that they stay in a processor's cache
# Changes of both ends of the best range that are tried next, in steps. More of them gain 0.01 dB.
MOVES = (
    (0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5), (0.5, 0.5), (-0.5, -0.5),
    (0.25, 0.0), (-0.25, 0.0), (0.0, 0.25), (0.0, -0.25),
)  # fmt: skip


def shrinkings(bits: int, count: int, widest: float = 1.0) -> list[float]:
    """Return the fractions of the whole range that are tried, evenly spaced: with fewer bits it is clipped more.

    Examples:
        >>> [round(fraction, 2) for fraction in shrinkings(4, 5)]
        [1.0, 0.9, 0.8, 0.7, 0.6]
    """
    lowest = {2: 0.3, 3: 0.45, 4: 0.6, 5: 0.7, 6: 0.8}.get(bits, 0.9)
    return [widest - (widest - lowest) * index / (count - 1) for index in range(count)]


def best_scale(
    grouped: torch.Tensor,
    importance: torch.Tensor | None,
    bits: int,
    top: float,
    rounded: Callable[[torch.Tensor], torch.Tensor],
    signs: Sequence[int],
) -> torch.Tensor:
    """Return the best scale of each group for levels without a zero point, [rows, groups] float32.

    Args:
        grouped: the weights, [rows, groups, k] float32.
        importance: h of each weight, [groups, k] float32; None: all 1.
        bits: of a code; decides how much is clipped.
        top: the level that is furthest from 0.
        rounded: returns the nearest level of each value in steps; may overwrite its argument.
        signs: the signs that a scale may have: both, where levels reach further on one side.

    Examples:
        >>> levels = lambda steps: steps.round_().clamp_(-4, 3)
        >>> best_scale(torch.tensor([[[-4.0, 3.0], [8.0, -6.0]]]), None, 3, 3.5, levels, (1, -1))
        tensor([[ 1., -2.]])
    """
    pieces = grouped.split(max(1, PIECE // grouped[0].numel()))
    return torch.cat([_best_scale(piece, importance, bits, top, rounded, signs) for piece in pieces])


def _best_scale(
    grouped: torch.Tensor,
    importance: torch.Tensor | None,
    bits: int,
    top: float,
    rounded: Callable[[torch.Tensor], torch.Tensor],
    signs: Sequence[int],
) -> torch.Tensor:
    largest = (grouped.abs().amax(dim=2, keepdim=True) / top).clamp_(min=SMALLEST_SCALE)  # [rows, groups, 1]
    weighted = grouped if importance is None else grouped * importance
    scale, best = largest, torch.zeros_like(largest)

    def attempt(tried: torch.Tensor) -> None:
        nonlocal scale, best
        levels = rounded(grouped / tried)
        across = (weighted * levels).sum(dim=2, keepdim=True)
        square = _summed(levels.square_(), importance)
        fitted = across / square  # NaN, which never compares as better, where all levels are 0
        gain = across * fitted
        better = (gain > best) & (fitted.abs() > SMALLEST_SCALE) & (fitted.abs() < LARGEST_SCALE)
        scale, best = torch.where(better, fitted, scale), torch.where(better, gain, best)

    # 1.08: on the side where levels reach less far, the widest range still clips nothing.
    for fraction in shrinkings(bits, 20, widest=1.08):
        for sign in signs:
            attempt(largest * (sign * fraction))
    attempt(scale)
    attempt(scale)
    return scale.squeeze(2)


def best_range(grouped: torch.Tensor, importance: torch.Tensor | None, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best scale and zero point of each group for codes 0 .. 2^bits - 1, both [rows, groups] float32.

    The zero point is one of the codes or lies between two of them. Arguments as in `best_scale`.

    Examples:
        >>> scale, zero = best_range(torch.tensor([[[-0.5, 0.0, 0.5, 1.0]]]), None, 2)
        >>> scale, zero
        (tensor([[0.5000]]), tensor([[1.]]))
    """
    pieces = [_best_range(piece, importance, bits) for piece in grouped.split(max(1, PIECE // grouped[0].numel()))]
    scales, zeros = zip(*pieces, strict=True)
    return torch.cat(scales), torch.cat(zeros)


def _best_range(grouped: torch.Tensor, importance: torch.Tensor | None, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    top = 2**bits - 1
    lowest = grouped.amin(dim=2, keepdim=True).clamp_(max=0)
    highest = grouped.amax(dim=2, keepdim=True).clamp_(min=0)
    count = float(grouped.shape[2]) if importance is None else importance.sum(dim=1, keepdim=True).clamp(min=1e-30)
    mean = _summed(grouped.clone(), importance) / count
    centred = grouped - mean if importance is None else (grouped - mean).mul_(importance)
    scale = ((highest - lowest) / top).clamp_(min=SMALLEST_SCALE)
    zero, best = -lowest / scale, torch.zeros_like(lowest)

    def attempt(tried: torch.Tensor, tried_zero: torch.Tensor) -> None:
        nonlocal scale, zero, best
        codes = (grouped / tried).add_(tried_zero).round_().clamp_(0, top)
        centre = _summed(codes.clone(), importance) / count
        across = (centred * codes).sum(dim=2, keepdim=True)
        spread = _summed(codes.sub_(centre).square_(), importance)
        fitted = across / spread  # NaN, which never compares as better, where all codes are equal
        fitted_zero = centre - mean / fitted
        gain = across * fitted
        better = (gain > best) & (fitted > SMALLEST_SCALE) & (fitted < LARGEST_SCALE)
        better &= (fitted_zero >= 0) & (fitted_zero <= top)
        scale, zero = torch.where(better, fitted, scale), torch.where(better, fitted_zero, zero)
        best = torch.where(better, gain, best)

    for fraction in shrinkings(bits, 4):
        low, high = mean + (lowest - mean) * fraction, mean + (highest - mean) * fraction
        tried = ((high - low) / top).clamp_(min=SMALLEST_SCALE)
        attempt(tried, -low / tried)
    for below, above in MOVES:
        tried_steps = (top + above + below) / top
        attempt(scale * tried_steps, (zero + below) / tried_steps)
    attempt(scale, zero)
    return scale.squeeze(2), zero.squeeze(2)


def _summed(values: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    """Return the weighted sum over each group, [rows, groups, 1]; overwrites `values`."""
    return (values if importance is None else values.mul_(importance)).sum(dim=2, keepdim=True)
