"""Scaling of input channels: channels that carry large inputs get a finer share of their weights' steps.

With positive s_c, sum_c (W_c s_c)(x_c / s_c) is the layer's output. AWQ (arXiv:2306.00978, section 3.2, eq. 4 and 5)
takes s = a^alpha, a being the size of each channel's input, and searches the alpha that loses least of the layer's
output when the weight is quantized; the division goes into what comes before the layer, as in SmoothQuant
(arXiv:2211.10438, section 4). components/foldable.py knows where that is possible.

Folds come before quantization: every tensor of a fold becomes what `scaled` says, and the rounding gets the consumers'
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
LARGEST_SCALE = 16.0  # and 1/16 the smallest: float16 weights and inputs stay far from its limits


def scales_for(
    fold: Fold, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, LayerStatistics], fmt: QuantFormat
) -> torch.Tensor:
    """[channels] float32: what the consumers' weights are best multiplied with before they are quantized in `fmt`.

    weights, statistics: of each consumer, under its layer's name. All 1 where scaling makes nothing better. What is
    made small is the sum over the consumers of tr(E M E^T) / tr(W M W^T), the noise to signal ratio of their outputs,
    E being the error of rounding on the grid that loses least (`weighted-search`).
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
    """The tensor of that name, in its dtype, as the fold makes it; itself if the fold has no part in it.

    Consumers' weights are multiplied with the scales [channels], producers divided by them. Raises ValueError where
    that does not fit the dtype.
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
    """Those of the inputs of a consumer, whose channels come divided by `scales` [channels]."""
    columns = scales.repeat_interleave(statistics.mean.numel() // scales.numel())
    parts = columns.split([block.shape[0] for block in statistics.moments])
    moments = tuple(block / part.outer(part) for block, part in zip(statistics.moments, parts, strict=True))
    return replace(statistics, mean=statistics.mean / columns, moments=moments)


def _noise_ratio(weight: torch.Tensor, statistics: LayerStatistics, scales: torch.Tensor, fmt: QuantFormat) -> float:
    """tr(E M E^T) / tr(W M W^T) of the weight when it is quantized with these scales."""
    from sdcompress.quant.error import output_sqnr_db

    wide = scales.to(weight.device).view(1, -1, *[1] * (weight.dim() - 2))
    close = _rounded(weight * wide, scaled_statistics(statistics, scales), fmt) / wide
    return float(10 ** (-output_sqnr_db(weight, close, statistics) / 10))


def _rounded(weight: torch.Tensor, statistics: LayerStatistics, fmt: QuantFormat) -> torch.Tensor:
    """The weight as the format alone stores it, float32; of a low-rank correction nothing is known yet."""
    import torch

    from sdcompress.quant.compose import quantize_weight, restored
    from sdcompress.quant.rounding.search import WeightedSearch

    if not isinstance(fmt, GridFormat):
        return fmt.quantize(weight).dequantize(torch.float32)
    return restored(quantize_weight(weight, replace(fmt, rank=0), WeightedSearch(), statistics), torch.float32)
