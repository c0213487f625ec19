"""Scaling of input channels: weights of channels with large inputs are rounded with smaller relative steps.

With positive s_c, sum_c (W_c s_c)(x_c / s_c) is the layer's output. AWQ (arXiv:2306.00978, section 3.2, eq. 4 and 5)
takes s = a^alpha, a being the size of each channel's input, and searches the alpha with the smallest error of the
layer's output when the weight is quantized. The preceding module divides, as in SmoothQuant (arXiv:2211.10438, section
4). `families/foldable.py` knows where that is possible.

Scaling comes before quantization: `scaled` gives every tensor of a fold, and the rounding gets the consumers'
`scaled_statistics`. A LoRA made for the original does not fit a layer whose input channels were scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sdcompress.quant.grid_format import GridFormat

if TYPE_CHECKING:
    import torch

    from sdcompress.families.foldable import Fold
    from sdcompress.quant.format import QuantFormat
    from sdcompress.quant.statistics import LayerStatistics

ALPHAS = tuple(step / 10 for step in range(11))
LARGEST_SCALE = 16.0  # the smallest is 1/16, so that weights and inputs stay far from the limits of float16


def scales_for(
    fold: Fold, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, LayerStatistics], fmt: QuantFormat
) -> torch.Tensor:
    """Return the factors by which the consumers' input channels are best scaled, [channels] float32.

    They minimise the sum over the consumers of tr(E M E^T) / tr(W M W^T), the noise to signal ratio of the output, E
    being the error of `weighted-search` in `fmt`. All are 1 where scaling improves nothing.

    Args:
        fold: the layers that share their input channels.
        weights: of each consumer, [out, in] or [out, in, kh, kw].
        statistics: of each consumer's input.
        fmt: the format that the consumers will have.
    """
    import torch

    channels = weights[fold.consumers[0]].shape[1]
    squares = [statistics[layer].second_moment.view(channels, -1).mean(dim=1) for layer in fold.consumers]
    sizes = torch.stack(squares).mean(dim=0).clamp(min=1e-12).log2() / 2  # [channels], of the inputs
    sizes -= sizes.mean()
    best, lowest = torch.ones(channels), float("inf")
    for alpha in ALPHAS:
        scales = (alpha * sizes).exp2().clamp(1 / LARGEST_SCALE, LARGEST_SCALE)
        loss = sum(_noise_ratio(weights[layer].float(), statistics[layer], scales, fmt) for layer in fold.consumers)
        if loss < lowest:
            best, lowest = scales, loss
    return best


def scaled(name: str, tensor: torch.Tensor, fold: Fold, scales: torch.Tensor) -> torch.Tensor:
    """Return a tensor after scaling, in its dtype: weights of consumers multiplied, tensors of producers divided.

    Args:
        name: of the tensor; one that the fold does not name is returned as it is.
        tensor: a weight, or a norm's or layer's bias.
        fold: the layers that share their input channels.
        scales: [channels].

    Raises:
        ValueError: the result overflows the dtype.

    Examples:
        >>> import torch
        >>> from sdcompress.families.foldable import Fold
        >>> fold, scales = Fold((("norm.weight", None),), ("to_q",)), torch.tensor([2.0, 0.5])
        >>> scaled("norm.weight", torch.ones(2), fold, scales), scaled("to_q.weight", torch.ones(1, 2), fold, scales)
        (tensor([0.5000, 2.0000]), tensor([[2.0000, 0.5000]]))
    """
    import torch

    scales = scales.to(tensor.device)
    exact = torch.promote_types(tensor.dtype, torch.float32)
    if name in {f"{layer}.weight" for layer in fold.consumers}:
        result = tensor.to(exact) * scales.view(1, -1, *[1] * (tensor.dim() - 2))
    elif rows := [rows for producer, rows in fold.producers if producer == name]:
        result = tensor.to(exact, copy=True)
        result[slice(*rows[0]) if rows[0] else slice(None)] /= scales.view(-1, *[1] * (tensor.dim() - 1))
    else:
        return tensor
    result = result.to(tensor.dtype)
    if not bool(result.isfinite().all()):
        raise ValueError(f"{name}: scaled, it does not fit {tensor.dtype}")
    return result


def scaled_statistics(statistics: LayerStatistics, scales: torch.Tensor) -> LayerStatistics:
    """Return the statistics of a consumer's input when its channels are divided by `scales` [channels]."""
    columns = scales.repeat_interleave(statistics.mean.numel() // scales.numel())
    parts = columns.split([block.shape[0] for block in statistics.moments])
    moments = tuple(block / part.outer(part) for block, part in zip(statistics.moments, parts, strict=True))
    return replace(statistics, mean=statistics.mean / columns, moments=moments)


def _noise_ratio(weight: torch.Tensor, statistics: LayerStatistics, scales: torch.Tensor, fmt: QuantFormat) -> float:
    """Return tr(E M E^T) / tr(W M W^T) of the weight when it is quantized with these scales."""
    from sdcompress.quant.error import output_sqnr_db

    wide = scales.to(weight.device).view(1, -1, *[1] * (weight.dim() - 2))
    close = _rounded(weight * wide, scaled_statistics(statistics, scales), fmt) / wide
    return float(10 ** (-output_sqnr_db(weight, close, statistics) / 10))


def _rounded(weight: torch.Tensor, statistics: LayerStatistics, fmt: QuantFormat) -> torch.Tensor:
    """Return the weight as the format stores it without a low-rank correction, in float32."""
    import torch

    from sdcompress.quant.compose import quantize_weight, restored
    from sdcompress.quant.rounding.search import WeightedSearch

    if not isinstance(fmt, GridFormat):
        return fmt.quantize(weight).dequantize(torch.float32)
    return restored(quantize_weight(weight, replace(fmt, rank=0), WeightedSearch(), statistics), torch.float32)
