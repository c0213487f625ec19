"""Rotation of blocks of input channels by a Hadamard matrix, which spreads a large weight over its block.

For an orthonormal H, (W H)(H^T x) = W x. The rotated weight is quantized: its values are closer to a normal
distribution, and its largest values are smaller. The layer rotates its input when it runs. QuaRot (arXiv:2404.00456,
section 4), QuIP# (arXiv:2402.04396, section 3). A block has as many neighbouring channels as the largest power of two
that divides their number, but at most LARGEST_BLOCK. Sylvester's matrices are symmetric, so H^T = H. In a convolution
every kernel position is rotated in the same way, and zeros stay zeros: rotating before padding is rotating after it.
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
    """Return how many of that many input channels, at least one, are rotated together; 1: none are.

    Examples:
        >>> block_size(320), block_size(1280), block_size(9)
        (64, 128, 1)
    """
    return min(in_channels & -in_channels, LARGEST_BLOCK)


def rotated_weight(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight [out, in, ...] for rotated inputs; of an embedding [count, width]: its rotated vectors.

    Applied twice, it returns the weight.

    Examples:
        >>> import torch
        >>> rotated_weight(torch.tensor([[0.0, 8.0, 0.0, 0.0]]))
        tensor([[ 4., -4.,  4., -4.]])
    """
    return rotated_input(weight, 1)


def rotated_input(x: torch.Tensor, dim: int, block: int | None = None) -> torch.Tensor:
    """Return the input for the rotated weight, in the shape and memory format of `x`. Applied twice, it returns `x`.

    Args:
        x: an input, of any floating-point type.
        dim: axis of the channels.
        block: channels rotated together, where that does not follow from their number: in a grouped convolution.
    """
    from sdcompress.quant.constants import hadamard_matrix

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
    """Return the statistics of the rotated inputs: H E[x], and H M H for each block M of the moments.

    Blocks are joined where channels that are rotated together lie in two; moments between the two count as 0.

    Args:
        statistics: of the inputs.
        in_channels: of the layer.
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
    """Return the sizes of blocks of moments after neighbours are joined until each is a multiple of `multiple`."""
    return tuple(sum(part) for part in _in_multiples(sizes, multiple))


def _joined(moments: Sequence[torch.Tensor], multiple: int) -> list[torch.Tensor]:
    """Return the blocks, neighbours joined until the size of each is a multiple of `multiple`."""
    import torch

    blocks = iter(moments)
    parts = [[next(blocks) for _ in part] for part in _in_multiples([len(block) for block in moments], multiple)]
    return [part[0] if len(part) == 1 else torch.block_diag(*part) for part in parts]


def _in_multiples(sizes: Sequence[int], multiple: int) -> list[list[int]]:
    """Return the sizes in the shortest runs whose sums are multiples of `multiple`."""
    runs: list[list[int]] = []
    waiting: list[int] = []
    for size in sizes:
        waiting.append(size)
        if sum(waiting) % multiple == 0:
            runs.append(waiting)
            waiting = []
    return runs
