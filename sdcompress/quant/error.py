"""How far a quantized weight is from the weight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def sqnr_db(weight: torch.Tensor, approximation: torch.Tensor) -> float:
    """Signal to quantization noise ratio, 10 log10(sum w^2 / sum (w - w')^2), in decibels; inf where they are equal."""
    signal = noise = 0.0
    pieces = (tensor.reshape(-1).split(2**22) for tensor in (weight, approximation))
    for exact, close in zip(*pieces, strict=True):
        signal += float(exact.float().square().sum())
        noise += float((exact.float() - close.float()).square().sum())
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
