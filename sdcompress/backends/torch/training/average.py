"""An exponential moving average of parameters, which is what training gives in the end."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def decay_at(step: int, decay: float) -> float:
    """How much of the average stays at that step, from 0: early ones, of which little is worth keeping, weigh less."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update(average: Iterable[torch.Tensor], parameters: Iterable[torch.Tensor], step: int, decay: float) -> None:
    """Moves the average towards the parameters: a <- d a + (1 - d) p."""
    share = 1 - decay_at(step, decay)
    for mean, value in zip(average, parameters, strict=True):
        mean.lerp_(value.to(mean.dtype), share)
