"""Scales and zero points that lose least: a search over clipping ranges, each of which least squares makes the best of.

Minimises sum h (w - w')^2 over each group, h being the importance of a weight's column: 1 (the mean squared error, as
in section 3.1 of Nagel et al. 2021, arXiv:2106.08295), or the second moment of the activations it is multiplied with,
which makes it the error of the layer's output as far as columns are uncorrelated. For given levels L the best scale is
s = sum h w L / sum h L^2 and leaves an error of sum h w^2 - (sum h w L)^2 / sum h L^2, so that a range is judged by
what it leads to and not by itself; with a zero point the same holds of w and L less their means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sdcompress.quant.scales import LARGEST_SCALE, SMALLEST_SCALE

if TYPE_CHECKING:
    import torch

PIECE = 2**18  # weights searched at once: what a processor's cache holds
# Where the ends of the best range go next, in steps: either, both, then either by less. More moves gain 0.01 dB.
MOVES = (
    (0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5), (0.5, 0.5), (-0.5, -0.5),
    (0.25, 0.0), (-0.25, 0.0), (0.0, 0.25), (0.0, -0.25),
)  # fmt: skip


def shrinkings(bits: int, count: int, widest: float = 1.0) -> list[float]:
    """Fractions of the whole range that are tried: fewer bits clip more."""
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
    """[rows, groups]: the scale of levels without zero point; grouped: [rows, groups, k].

    importance: [groups, k], or None. top: the level furthest from 0. rounded: gives the nearest level of each value
    in steps, which it may change. signs: those a scale may have; levels that reach further on one side have a use for
    both.
    """
    import torch

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
    import torch

    largest = (grouped.abs().amax(dim=2, keepdim=True) / top).clamp_(min=SMALLEST_SCALE)  # [rows, groups, 1]
    weighted = grouped if importance is None else grouped * importance
    scale, best = largest, torch.zeros_like(largest)

    def attempt(tried: torch.Tensor) -> None:
        nonlocal scale, best
        levels = rounded(grouped / tried)
        across = (weighted * levels).sum(dim=2, keepdim=True)
        square = _summed(levels.square_(), importance)
        fitted = across / square  # NaN, which is never better, where all levels are 0
        gain = across * fitted
        better = (gain > best) & (fitted.abs() > SMALLEST_SCALE) & (fitted.abs() < LARGEST_SCALE)
        scale, best = torch.where(better, fitted, scale), torch.where(better, gain, best)

    # From where levels that reach less far on one side still clip nothing there.
    for fraction in shrinkings(bits, 20, widest=1.08):
        for sign in signs:
            attempt(largest * (sign * fraction))
    attempt(scale)
    attempt(scale)
    return scale.squeeze(2)


def best_range(grouped: torch.Tensor, importance: torch.Tensor | None, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point [rows, groups] of codes 0 .. 2^bits - 1; arguments as in `best_scale`.

    The zero point is one of the codes or between two of them.
    """
    import torch

    pieces = [_best_range(piece, importance, bits) for piece in grouped.split(max(1, PIECE // grouped[0].numel()))]
    scales, zeros = zip(*pieces, strict=True)
    return torch.cat(scales), torch.cat(zeros)


def _best_range(grouped: torch.Tensor, importance: torch.Tensor | None, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

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
        fitted = across / spread  # NaN, which is never better, where all codes are alike
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
    """[rows, groups, 1]: the sum over each group, weighted; changes `values`."""
    return (values if importance is None else values.mul_(importance)).sum(dim=2, keepdim=True)
