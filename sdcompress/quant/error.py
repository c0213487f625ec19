"""The error of a quantized weight, and of its layer's output, as signal to noise ratios."""

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
    """Return the signal to quantization noise ratio in decibels, 10 log10(sum w^2 / sum (w - w')^2).

    It is infinite where the two are equal.

    Args:
        weight: w, of any shape and floating-point type.
        approximation: w', of the same shape.

    Examples:
        >>> import torch
        >>> round(sqnr_db(torch.full((4,), 2.0), torch.full((4,), 2.2)), 2)
        20.0
    """
    pieces = (tensor.reshape(-1).split(PIECE) for tensor in (weight, approximation))
    return _sqnr_db(zip(*pieces, strict=True))


def rounding_sqnr_db(weight: torch.Tensor, tensor: QuantizedTensor) -> float:
    """Return `sqnr_db` of a weight and its quantized tensor, which is dequantized some rows at a time."""
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
    """Return the signal to noise ratio of the layer's output over the calibration inputs, without bias, in decibels.

    It is 10 log10(tr(W M W^T) / tr(E M E^T)) with E = W - W' and M = E[x x^T], since E|W x|^2 = tr(W M W^T), summed
    over the blocks of M that `statistics` has; infinite where there is no noise.

    Args:
        weight: W, [out, in] or [out, in, kh, kw].
        approximation: W', of the same shape.
        statistics: of the layer's input.

    Raises:
        ValueError: shapes or columns do not agree.
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
