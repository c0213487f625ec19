"""Rotation of blocks of input channels by a Hadamard matrix, which spreads a large weight over its block.

For an orthonormal H, (W H)(H^T x) = W x: the rotated weight, whose values are nearer to normally distributed and whose
largest ones are smaller, is quantized, and the layer's input is rotated as it runs. QuaRot (arXiv:2404.00456, section
4), QuIP# (arXiv:2402.04396, section 3). A block is as many neighbouring channels as the largest power of two that
divides their number, and no more than LARGEST_BLOCK; Sylvester's matrices are symmetric, so H^T = H. In a convolution
every kernel position is rotated alike, and zeros stay zeros: rotating before padding is rotating after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.statistics import LayerStatistics

LARGEST_BLOCK = 128


def block_size(in_channels: int) -> int:
    """How many of that many input channels, a number above 0, are rotated together; 1: none are."""
    return min(in_channels & -in_channels, LARGEST_BLOCK)


def rotated_weight(weight: torch.Tensor) -> torch.Tensor:
    """The weight [out, in, ...] for rotated inputs; of an embedding [count, width], the one of rotated vectors."""
    return rotated_input(weight, 1)


def restored_weight(weight: torch.Tensor) -> torch.Tensor:
    """The weight whose rotated one this is."""
    return rotated_input(weight, 1)


def rotated_input(x: torch.Tensor, dim: int, block: int | None = None) -> torch.Tensor:
    """What the rotated weight expects for `x`, of which axis `dim` are the channels; the same of a rotated output.

    block: of the weight, in a convolution with groups; else it follows from the number of channels. Memory laid out
    as channels_last stays so.
    """
    from sdcompress.quant.corrections.hadamard_matrix import hadamard_matrix

    dim = dim % x.dim()
    size = block or block_size(x.shape[dim])
    if size == 1:
        return x
    matrix = hadamard_matrix(size, x.dtype, x.device)
    if dim == x.dim() - 1:
        return (x.unflatten(dim, (-1, size)) @ matrix).flatten(-2)
    if x.stride(dim) == 1:
        return (x.movedim(dim, -1).unflatten(-1, (-1, size)) @ matrix).flatten(-2).movedim(-1, dim)
    return (matrix @ x.unflatten(dim, (-1, size)).flatten(dim + 2)).view(x.shape)


def rotated_statistics(statistics: LayerStatistics, in_channels: int) -> LayerStatistics:
    """Those of the rotated inputs: H E[x], and H M H of each block M of the moments.

    Blocks that part channels which are rotated together are joined; what was not gathered between them counts as 0.
    """
    positions = statistics.mean.numel() // in_channels
    mean = rotated_input(statistics.mean.view(in_channels, positions), 0).flatten()
    size = block_size(in_channels)
    moments = []
    for block in _joined(statistics.moments, size * positions):
        channels = block.shape[0] // positions
        parts = block.view(channels, positions, channels, positions)
        moments.append(rotated_input(rotated_input(parts, 0, size), 2, size).reshape(block.shape))
    return replace(statistics, mean=mean, moments=tuple(moments))


def joined_sizes(sizes: Sequence[int], multiple: int) -> tuple[int, ...]:
    """The sizes of blocks of moments when those that part channels rotated together are joined."""
    return tuple(sum(part) for part in _in_multiples(sizes, multiple))


def _joined(moments: Sequence[torch.Tensor], multiple: int) -> list[torch.Tensor]:
    """The blocks as they are where their sizes are multiples of `multiple`, neighbours joined where they are not."""
    import torch

    blocks = iter(moments)
    parts = [[next(blocks) for _ in part] for part in _in_multiples([len(block) for block in moments], multiple)]
    return [part[0] if len(part) == 1 else torch.block_diag(*part) for part in parts]


def _in_multiples(sizes: Sequence[int], multiple: int) -> list[list[int]]:
    """The sizes in runs as short as can be, the sum of each a multiple of `multiple`."""
    runs: list[list[int]] = []
    waiting: list[int] = []
    for size in sizes:
        waiting.append(size)
        if sum(waiting) % multiple == 0:
            runs.append(waiting)
            waiting = []
    return runs
