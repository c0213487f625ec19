"""The values that codes can stand for, and rounding to the nearest of them: common to all formats of our own.

A code q of a group stands for s (q - z), uniform affine quantization (eq. 5 of Nagel et al. 2021, arXiv:2106.08295)
with a zero point z that need not be a whole number, or for s L[q], L being a sorted table of levels. A grid holds s, z
and L of every group *as they will be stored*, so that whatever chooses codes, choosing is all it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Grid:
    """Where the codes of some rows of a weight lie."""

    scale: torch.Tensor | None  # [rows, groups] float32; None: 1
    zero: torch.Tensor | None  # [rows, groups] float32; None: 0
    levels: torch.Tensor | None  # [levels] or [rows, levels] float32, sorted; None: the whole numbers
    low: int  # smallest code
    high: int  # largest code
    parts: Mapping[str, torch.Tensor]  # what of it is stored, by its name in QuantizedTensor

    def encode(self, values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """The nearest codes of `values` [rows, columns], whose columns belong to `groups` [columns]; as float32."""
        scale, zero = self.at(groups)
        return nearest(values, scale, zero, self.levels, self.low, self.high)

    def decode(self, codes: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """What codes [rows, columns] stand for, float32; `groups` as in `encode`."""
        scale, zero = self.at(groups)
        return value_of(codes, scale, zero, self.levels)

    def at(self, groups: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Scale and zero point of each column [rows, columns], None where the grid has none."""
        scale = None if self.scale is None else self.scale[:, groups]
        return scale, None if self.zero is None else self.zero[:, groups]


def nearest(
    values: torch.Tensor,
    scale: torch.Tensor | None,
    zero: torch.Tensor | None,
    levels: torch.Tensor | None,
    low: int,
    high: int,
) -> torch.Tensor:
    """The codes, as float32, whose values are nearest; `scale` and `zero` broadcast with `values` [rows, ...]."""
    import torch

    steps = values if scale is None else values / scale
    if levels is None:
        steps = steps if zero is None else steps + zero
        return steps.round().clamp_(low, high)
    middles = (levels[..., 1:] + levels[..., :-1]) / 2
    if middles.dim() == 1:
        return torch.bucketize(steps, middles).float()
    flat = steps.reshape(steps.shape[0], -1).contiguous()
    return torch.searchsorted(middles.contiguous(), flat).float().view(steps.shape)


def value_of(
    codes: torch.Tensor, scale: torch.Tensor | None, zero: torch.Tensor | None, levels: torch.Tensor | None
) -> torch.Tensor:
    """What the codes stand for; `scale` and `zero` broadcast with `codes` [rows, ...]."""
    if levels is None:
        steps = codes if zero is None else codes - zero
    elif levels.dim() == 1:
        steps = levels[codes.long()]
    else:
        steps = levels.gather(1, codes.long().flatten(1)).view(codes.shape)
    return steps if scale is None else steps * scale
