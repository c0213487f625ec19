"""The values that codes can stand for, and rounding to the nearest of them.

A code q of a group stands for s (q - z), uniform affine quantization (eq. 5 of Nagel et al. 2021, arXiv:2106.08295)
with a zero point z that need not be a whole number, or for s L[q], L being a sorted table of levels. A grid holds s, z
and L of every group *as they will be stored*, so that a rounding only has to choose codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Grid:
    """The values of the codes of some rows of a weight.

    Args:
        scale: [rows, groups] float32; None: 1.
        zero: zero points in steps, [rows, groups] float32; None: 0.
        levels: [levels] or [rows, levels] float32, sorted; None: the integers from `low` to `high`.
        low: the smallest code.
        high: the largest code.
        parts: what is stored of the grid, by the names of QuantizedTensor's fields.

    Examples:
        >>> import torch
        >>> grid = Grid(torch.tensor([[0.5]]), None, None, -2, 1)
        >>> values, groups = torch.tensor([[-3.0, -0.6, 0.3]]), torch.zeros(3, dtype=torch.int64)
        >>> codes = grid.encode(values, groups)
        >>> codes, grid.decode(codes, groups)
        (tensor([[-2., -1.,  1.]]), tensor([[-1.0000, -0.5000,  0.5000]]))
    """

    scale: torch.Tensor | None
    zero: torch.Tensor | None
    levels: torch.Tensor | None
    low: int
    high: int
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def encode(self, values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """Return the nearest codes, [rows, columns] float32.

        Args:
            values: [rows, columns] float32.
            groups: the group of each column, [columns] int64.
        """
        scale, zero = self._of_columns(groups)
        return nearest(values, scale, zero, self.levels, self.low, self.high)

    def decode(self, codes: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """Return what codes [rows, columns] stand for, [rows, columns] float32; `groups` as in `encode`."""
        scale, zero = self._of_columns(groups)
        return value_of(codes, scale, zero, self.levels)

    def _of_columns(self, groups: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
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
    """Return the codes of the nearest values, as float32 in the shape of `values`.

    Args:
        values: [rows, ...] float32.
        scale: broadcasts with `values`; None: 1.
        zero: zero points in steps, broadcasts with `values`; None: 0.
        levels, low, high: as a Grid has them.
    """
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
    """Return what the codes [rows, ...] stand for, in their shape; the other arguments as in `nearest`."""
    if levels is None:
        steps = codes if zero is None else codes - zero
    elif levels.dim() == 1:
        steps = levels[codes.long()]
    else:
        steps = levels.gather(1, codes.long().flatten(1)).view(codes.shape)
    return steps if scale is None else steps * scale
