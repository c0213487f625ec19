"""Which heads or channels of a group matter most, and tensors cut to those that stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sdcompress.pruning.widths import Cut, Group
    from sdcompress.quant.statistics import LayerStatistics

Read = Callable[[str], "torch.Tensor"]


def score(
    group: Group, how: str, read: Read, statistics: Mapping[str, LayerStatistics], origin: Callable[[str], str]
) -> torch.Tensor:
    """Return the importance of each head or channel, [width] float32.

    Args:
        group: the heads or channels.
        how: `magnitude` or `activation`.
        read: returns a weight by its name.
        statistics: of layers' inputs, by the layers' names before anything was removed; for `activation`.
        origin: returns the name before anything was removed of a tensor.
    """
    if how == "magnitude":
        return magnitude(group, read)
    name = f"{group.consumer}.weight"
    return activation(group, read(name), statistics[origin(name).removesuffix(".weight")])


def magnitude(group: Group, read: Read) -> torch.Tensor:
    """Return the importance by the squares of all weights that belong to a head or channel, [width] float32.

    Each weight's sum is divided by its mean over the group, so that none dominates by its size (group L2 norm of
    DepGraph, arXiv:2301.12900, section 3.3). Biases and norms do not count.
    """
    import torch

    total = torch.zeros(group.width)
    for cut in group.cuts:
        weight = read(cut.tensor)
        if weight.dim() > 1:
            parts = weight.float().square().movedim(cut.axis, 0).reshape(cut.repeats, group.width, -1)
            squares = parts.sum(dim=(0, 2))  # [width]
            total += squares / squares.mean().clamp_min(torch.finfo(torch.float32).tiny)
    return total


def activation(group: Group, weight: torch.Tensor, statistics: LayerStatistics) -> torch.Tensor:
    """Return the importance by the mean energy that a head or channel adds to the consumer's output, [width] float32.

    It is the sum of E[x_j^2] * |W_j|^2 over its columns j: Wanda's |W| * ||x|| (arXiv:2306.11695, eq. 1), squared.

    Args:
        group: the heads or channels.
        weight: W of the consumer, [out, in] or [out, in, kh, kw].
        statistics: of the consumer's input.
    """
    energy = statistics.second_moment.to(weight.device) * weight.float().flatten(1).square().sum(0)  # [columns]
    return energy.view(group.width, -1).sum(1)


def choose(importance: torch.Tensor, group: Group) -> torch.Tensor:
    """Return the indices of what stays, ascending: the most important of each partition, the first of equals.

    Examples:
        >>> import torch
        >>> from sdcompress.pruning.widths import Group
        >>> group = Group("ff", "feed_forward", width=4, kept=2, cuts=(), consumer="ff.net.2", partitions=2)
        >>> choose(torch.tensor([1.0, 3.0, 9.0, 8.0]), group)
        tensor([1, 2])
    """
    import torch

    each = group.width // group.partitions
    parts = importance.view(group.partitions, each)
    order = parts.argsort(dim=1, descending=True, stable=True)[:, : group.kept // group.partitions]
    return (order + each * torch.arange(group.partitions).unsqueeze(1)).flatten().sort().values


def cut_tensor(tensor: torch.Tensor, cut: Cut, group: Group, kept: torch.Tensor) -> torch.Tensor:
    """Return the tensor with only the kept heads or channels along the cut's axis.

    Args:
        tensor: of the cut's name.
        cut: where its heads or channels lie.
        group: the cut's group.
        kept: from `choose`.
    """
    import torch

    repeats = torch.arange(cut.repeats).view(-1, 1, 1) * group.width * cut.size
    index = repeats + (kept * cut.size).view(1, -1, 1) + torch.arange(cut.size).view(1, 1, -1)
    return tensor.index_select(cut.axis, index.flatten())
