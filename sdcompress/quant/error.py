"""How far a quantized weight is from the weight, and what its layer makes of that."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sdcompress.quant.format import PIECE

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor
    from sdcompress.quant.statistics import LayerStatistics


def sqnr_db(weight: torch.Tensor, approximation: torch.Tensor) -> float:
    """Signal to quantization noise ratio, 10 log10(sum w^2 / sum (w - w')^2), in decibels; inf where they are equal."""
    pieces = (tensor.reshape(-1).split(PIECE) for tensor in (weight, approximation))
    return _sqnr_db(zip(*pieces, strict=True))


def rounding_sqnr_db(weight: torch.Tensor, tensor: QuantizedTensor) -> float:
    """The same of a weight and its codes, dequantized some rows at a time."""
    import torch

    rows = max(1, PIECE // max(1, weight[0].numel()))
    starts = range(0, weight.shape[0], rows)
    return _sqnr_db((weight[at : at + rows], tensor.rows(at, at + rows).dequantize(torch.float32)) for at in starts)


def _sqnr_db(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    import torch

    signal = noise = 0.0
    for weight, close in pairs:
        exact = weight.float()
        signal += float(torch.linalg.vector_norm(exact)) ** 2
        noise += float(torch.linalg.vector_norm(exact - close.float())) ** 2
    return _decibels(signal, noise)


def output_sqnr_db(weight: torch.Tensor, approximation: torch.Tensor, statistics: LayerStatistics) -> float:
    """Signal to noise ratio of the layer's output, bias aside, over the calibration inputs, in decibels.

    10 log10(tr(W M W^T) / tr(E M E^T)) with E = W - W' and M = E[x x^T], for E|W x|^2 = tr(W M W^T); summed over the
    blocks of M that `statistics` has. inf where there is no noise. ValueError where columns or shapes do not agree.
    """
    columns = sum(block.shape[0] for block in statistics.moments)
    if weight.shape != approximation.shape or weight[0].numel() != columns:
        raise ValueError(
            f"a weight of shape {list(weight.shape)}, an approximation of {list(approximation.shape)} and "
            f"statistics of {columns} columns do not go together"
        )
    signal = noise = 0.0
    rows = max(PIECE // columns, 1)
    pieces = (tensor.flatten(1).split(rows) for tensor in (weight, approximation))
    for exact, close in zip(*pieces, strict=True):
        device = statistics.moments[0].device
        w = exact.to(device).float()  # [rows, columns]
        e = w - close.to(device).float()
        start = 0
        for block in statistics.moments:
            part = slice(start, start + block.shape[0])
            signal += float(((w[:, part] @ block) * w[:, part]).sum())
            noise += float(((e[:, part] @ block) * e[:, part]).sum())
            start = part.stop
    return _decibels(signal, noise)


def _decibels(signal: float, noise: float) -> float:
    return math.inf if noise <= 0 else 10 * math.log10(max(signal, 1e-300) / noise)
