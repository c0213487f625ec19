"""The exponential moving average of the parameters, which is the result of training."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def decay_at(step: int, decay: float) -> float:
    """Return the average's decay at a step. It grows from a low value, since early parameters are of little use."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(average: Iterable[torch.Tensor], parameters: Iterable[torch.Tensor], step: int, decay: float) -> None:
    """Move the average towards the parameters: a <- d a + (1 - d) p."""
    share = 1 - decay_at(step, decay)
    for mean, value in zip(average, parameters, strict=True):
        mean.lerp_(value.to(mean.dtype), share)
