"""Which heads or channels of a group matter most, and tensors cut to those that stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sdcompress.pruning.widths import Cut, Group
    from sdcompress.quant.statistics import LayerStatistics

Read = Callable[[str], "torch.Tensor"]


def magnitude(group: Group, read: Read) -> torch.Tensor:
    """Importance of each head or channel [width], float32: the squares of all weights that belong to it.

    Each weight's sum is divided by its mean over the group, so that none decides by its size alone (group L2 norm of
    DepGraph, arXiv:2301.12900, section 3.3). Biases and norms do not count.
    """
    import torch

    total = torch.zeros(group.width)
    for cut in group.cuts:
        weight = read(cut.tensor)
        if weight.dim() > 1:
            squares = _by_part(weight.float().square(), cut, group.width)
            total += squares / squares.mean().clamp_min(torch.finfo(torch.float32).tiny)
    return total


def activation(group: Group, weight: torch.Tensor, statistics: LayerStatistics) -> torch.Tensor:
    """Importance of each head or channel [width], float32: the mean energy that it adds to the consumer's output.

    sum over its columns j of E[x_j^2] * |W_j|^2: Wanda's |W| * ||x|| (arXiv:2306.11695, eq. 1), squared and added up
    over whatever goes together.
    """
    energy = statistics.second_moment.to(weight.device) * weight.float().flatten(1).square().sum(0)  # [columns]
    return energy.view(group.width, -1).sum(1)


def choose(importance: torch.Tensor, group: Group) -> torch.Tensor:
    """Indices of what stays, ascending: the most important of each partition, the first of equals."""
    import torch

    each = group.width // group.partitions
    parts = importance.view(group.partitions, each)
    order = parts.argsort(dim=1, descending=True, stable=True)[:, : group.kept // group.partitions]
    return (order + each * torch.arange(group.partitions).unsqueeze(1)).flatten().sort().values


def cut_tensor(tensor: torch.Tensor, cut: Cut, group: Group, kept: torch.Tensor) -> torch.Tensor:
    """The tensor with nothing but the kept heads or channels along the cut's axis."""
    import torch

    repeats = torch.arange(cut.repeats).view(-1, 1, 1) * group.width * cut.size
    index = repeats + (kept * cut.size).view(1, -1, 1) + torch.arange(cut.size).view(1, 1, -1)
    return tensor.index_select(cut.axis, index.flatten())


def _by_part(squares: torch.Tensor, cut: Cut, width: int) -> torch.Tensor:
    """Sums [width] over all that belongs to each head or channel."""
    flat = squares.movedim(cut.axis, 0).reshape(cut.repeats, width, -1)
    return flat.sum(dim=(0, 2))


def score(
    group: Group, how: str, read: Read, statistics: Mapping[str, LayerStatistics], origin: Callable[[str], str]
) -> torch.Tensor:
    """Importance of the group's parts by `magnitude` or `activation`; `origin`: a tensor's name as the file has it."""
    if how == "magnitude":
        return magnitude(group, read)
    name = f"{group.consumer}.weight"
    return activation(group, read(name), statistics[origin(name).removesuffix(".weight")])
