"""Which weights of a layer share a scale: groups along the input channels, the last of which may be smaller.

In a convolution, a group is `group` input channels, either at all kernel positions together or at each one apart.
Columns are those of `weight.flatten(1)`: [in] of a linear layer, [in*kh*kw] of a convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layout:
    """The groups of a weight.

    Args:
        shape: of the weight, [out, in] or [out, in, kh, kw].
        group: input channels of a group; None: an output channel is one group.
        per_position: whether each kernel position has groups of its own.

    Examples:
        >>> layout = Layout((8, 5, 1, 2), 3, per_position=True)
        >>> layout.scale_shape, layout.groups, layout.even
        ((8, 2, 1, 2), 4, False)
        >>> layout.group_of_columns().tolist()
        [0, 1, 0, 1, 0, 1, 2, 3, 2, 3]
    """

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
        """Shape of the scales: [out], [out, in/group] or, per position, [out, in/group, kh, kw]."""
        if self.group is None:
            return self.shape[:1]
        along = -(-self.shape[1] // self.group)
        return (self.shape[0], along, *(self.kernel if self.per_position else ()))

    @property
    def groups(self) -> int:
        """Groups of an output channel."""
        return math.prod(self.scale_shape[1:])

    @property
    def even(self) -> bool:
        """Whether the last group is as large as the others."""
        return self.group is None or self.shape[1] % self.group == 0

    def group_of_columns(self) -> torch.Tensor:
        """Return the group of each column, in the order of `scale.flatten(1)`: [columns] int64."""
        import torch

        if self.group is None:
            return torch.zeros(self.columns, dtype=torch.int64)
        channels = torch.arange(self.shape[1]) // self.group  # [in]
        positions = math.prod(self.kernel)
        if not self.per_position:
            return channels.repeat_interleave(positions)
        return (channels[:, None] * positions + torch.arange(positions)).flatten()

    def grouped(self, weight: torch.Tensor) -> torch.Tensor:
        """Return rows of the weight [rows, in, ...] as [rows, groups, k], a smaller last group filled up with 0."""
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
        """Return one value for each column, [columns], as [groups, k]; None for None."""
        return None if values is None else self.grouped(values.view(1, *self.shape[1:]))[0]

    def split(self, weight: torch.Tensor) -> torch.Tensor:
        """Return rows of the weight as [rows, in/group, group, kh, kw], or unchanged where groups differ in size."""
        if self.group is None or not self.even:
            return weight
        return weight.view(weight.shape[0], -1, self.group, *self.kernel)

    def spread(self, scale: torch.Tensor) -> torch.Tensor:
        """Return one value for each group, [rows, *scale_shape[1:]], so that it broadcasts with `split(weight)`."""
        import torch

        rows, ones = scale.shape[0], [1] * len(self.kernel)
        if self.group is None:
            return scale.view(rows, 1, *ones)
        wide = scale.view(rows, -1, *(self.kernel if self.per_position else ones))
        if self.even:
            return wide.unsqueeze(2)
        if torch.compiler.is_compiling():  # which leaves out repeat_interleave's last group on a CPU (torch 2.13)
            return wide.index_select(1, torch.arange(self.shape[1], device=scale.device) // self.group)
        return wide.repeat_interleave(self.group, dim=1)[:, : self.shape[1]]
