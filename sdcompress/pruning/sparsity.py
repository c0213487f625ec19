"""Which weights of a layer become zero: those of least magnitude, or of least effect on the layer's output."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.statistics import LayerStatistics

GROUP, KEPT = 4, 2  # of the 2:4 pattern


def scores(weight: torch.Tensor, statistics: LayerStatistics | None) -> torch.Tensor:
    """Return the importance of each weight, float32 in the weight's shape.

    Args:
        weight: W, [out, in] or [out, in, kh, kw].
        statistics: of the layer's input. With them, the importance is Wanda's |W| * ||x|| (Sun et al. 2023,
            arXiv:2306.11695, eq. 1) with ||x|| = sqrt(E[x^2]); without, it is |W|.

    Examples:
        >>> import torch
        >>> score = scores(torch.tensor([[0.5, -2.0, 1.0, 0.1]]), None)
        >>> kept_share(score, sparsity=0.5, by_row=True), kept_2_4(score)
        (tensor([[False,  True,  True, False]]), tensor([[False,  True,  True, False]]))
    """
    magnitudes = weight.float().abs()
    if statistics is None:
        return magnitudes
    rows = magnitudes.flatten(1)  # [out, in*kh*kw]
    return (rows * statistics.second_moment.to(rows.device).clamp_min(0).sqrt()).view(weight.shape)


def kept_share(score: torch.Tensor, sparsity: float, by_row: bool) -> torch.Tensor:
    """Return the mask of the weights that stay: all but floor(sparsity * n) of n.

    Those with the smallest scores are removed; among equal scores the first.

    Args:
        score: from `scores`.
        sparsity: fraction of the weights that are removed, 0 to 1.
        by_row: whether n are the weights of an output channel; else they are all of the layer.
    """
    import torch

    rows = score.flatten(1) if by_row else score.reshape(1, -1)
    zeros = math.floor(sparsity * rows.shape[1])
    if zeros == 0:
        return torch.ones_like(score, dtype=torch.bool)
    limit = rows.kthvalue(zeros, dim=1, keepdim=True).values
    below, equal = rows < limit, rows == limit
    first = equal & (equal.cumsum(1) <= zeros - below.sum(1, keepdim=True))
    return ~(below | first).view(score.shape)


def kept_2_4(score: torch.Tensor) -> torch.Tensor:
    """Return the mask of the two largest of every four input channels, at each kernel position separately.

    Args:
        score: from `scores`; its input channels are a multiple of four.
    """
    import torch

    groups = score.movedim(1, -1)  # [out, (kh, kw,) in]
    fours = groups.reshape(*groups.shape[:-1], -1, GROUP)
    order = fours.argsort(dim=-1, descending=True, stable=True)[..., :KEPT]
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, order, True)
    return mask.reshape(groups.shape).movedim(-1, 1)
