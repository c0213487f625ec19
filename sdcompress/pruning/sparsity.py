"""Which weights of a layer become zero: those of least magnitude, or of least effect on what it usually gets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.statistics import LayerStatistics

GROUP, KEPT = 4, 2  # of the 2:4 pattern


def scores(weight: torch.Tensor, statistics: LayerStatistics | None) -> torch.Tensor:
    """|W|, or Wanda's |W| * ||x|| (Sun et al. 2023, arXiv:2306.11695, eq. 1) with ||x|| = sqrt(E[x^2]); float32."""
    magnitudes = weight.float().abs()
    if statistics is None:
        return magnitudes
    rows = magnitudes.flatten(1)  # [out, in*kh*kw]
    return (rows * statistics.second_moment.to(rows.device).clamp_min(0).sqrt()).view(weight.shape)


def kept_share(score: torch.Tensor, sparsity: float, by_row: bool) -> torch.Tensor:
    """Mask without floor(sparsity * n) of the n least scores, of each output channel if `by_row`, else of all; of
    equals the first go."""
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
    """Mask with the largest two of every four input channels, of a convolution at each kernel position apart."""
    import torch

    groups = score.movedim(1, -1)  # [out, (kh, kw,) in]
    fours = groups.reshape(*groups.shape[:-1], -1, GROUP)
    order = fours.argsort(dim=-1, descending=True, stable=True)[..., :KEPT]
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, order, True)
    return mask.reshape(groups.shape).movedim(-1, 1)
