"""Which weights of a layer share a scale: groups along the input channels, the last of which may be smaller.

In a convolution a group is `group` input channels, either at all kernel positions together or at each one apart.
Columns are those of `weight.flatten(1)`: [in] of a linear layer, [in * kh * kw] of a convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layout:
    """The groups of a weight of `shape` [out, in, ...]; `group` None: one for each output channel."""

    shape: tuple[int, ...]
    group: int | None
    per_position: bool = False

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size of a convolution, () of a linear layer."""
        return self.shape[2:]

    @property
    def columns(self) -> int:
        """Weights of an output channel."""
        return math.prod(self.shape[1:])

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """[out], [out, in / group] or, per position, [out, in / group, kh, kw]."""
        if self.group is None:
            return self.shape[:1]
        along = -(-self.shape[1] // self.group)
        return (self.shape[0], along, *(self.kernel if self.per_position else ()))

    @property
    def groups(self) -> int:
        """Groups of an output channel."""
        return math.prod(self.scale_shape[1:])

    def group_of_columns(self) -> torch.Tensor:
        """[columns] int64: the group, in the order of `scale.flatten(1)`, that each column belongs to."""
        import torch

        if self.group is None:
            return torch.zeros(self.columns, dtype=torch.int64)
        channels = torch.arange(self.shape[1]) // self.group  # [in]
        positions = math.prod(self.kernel)
        if not self.per_position:
            return channels.repeat_interleave(positions)
        return (channels[:, None] * positions + torch.arange(positions)).flatten()

    def grouped(self, weight: torch.Tensor) -> torch.Tensor:
        """Rows of the weight [rows, in, ..] as [rows, groups, weights of a group], a smaller last one filled with 0."""
        import torch

        rows = weight.shape[0]
        if self.group is None:
            return weight.reshape(rows, 1, -1)
        flat = weight.reshape(rows, self.shape[1], -1)  # [rows, in, positions]
        along = -(-self.shape[1] // self.group)
        if missing := along * self.group - self.shape[1]:
            flat = torch.nn.functional.pad(flat, (0, 0, 0, missing))
        if not self.per_position:
            return flat.reshape(rows, along, -1)
        blocks = flat.view(rows, along, self.group, -1).transpose(2, 3)  # [rows, in/group, positions, group]
        return blocks.reshape(rows, -1, self.group)

    def grouped_columns(self, values: torch.Tensor | None) -> torch.Tensor | None:
        """One value a column, [columns], as [groups, weights of a group]; None for None."""
        return None if values is None else self.grouped(values.view(1, *self.shape[1:]))[0]

    def spread(self, scale: torch.Tensor) -> torch.Tensor:
        """A tensor of one value a group, [rows, *scale_shape[1:]], in a shape that broadcasts with `split(weight)`."""
        rows = scale.shape[0]
        if self.group is None:
            return scale.view(rows, *[1] * (len(self.shape) - 1))
        along = scale.shape[1]
        if self.per_position:
            return scale.view(rows, along, 1, *self.kernel)
        return scale.view(rows, along, *[1] * (len(self.shape) - 1))

    def split(self, weight: torch.Tensor) -> torch.Tensor:
        """Rows of the weight as [rows, in / group, group, kh, kw] where groups divide it; see `apply`."""
        if self.group is None:
            return weight
        return weight.view(weight.shape[0], -1, self.group, *self.kernel)

    @property
    def even(self) -> bool:
        """Whether the last group is as large as the others."""
        return self.group is None or self.shape[1] % self.group == 0

    def expanded(self, scale: torch.Tensor) -> torch.Tensor:
        """One value a group, [rows, *scale_shape[1:]], as one a weight, in the shape of rows of the weight."""
        if self.group is None:
            return self.spread(scale).expand(scale.shape[0], *self.shape[1:])
        wide = scale if self.per_position else scale.view(*scale.shape, *[1] * len(self.kernel))
        wide = wide.repeat_interleave(self.group, dim=1)[:, : self.shape[1]]
        return wide.expand(scale.shape[0], *self.shape[1:])
