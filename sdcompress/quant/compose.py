"""A weight and all that a format wants of it, put together: rotated, a low-rank part taken out, the rest rounded.

The low-rank part is found twice: first as the largest singular part of the weight, so that what is rounded is smaller
(SVDQuant, arXiv:2411.05007, section 4.2); then, where the layer's inputs are known, anew as what makes up best for
the error of the rounded rest in the layer's output (LQER, arXiv:2402.02446, section 3.2, whose diagonal scaling the
whole of E[x x^T] replaces; LoftQ, arXiv:2310.08659, section 3.2, alternates in this way without inputs).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sdcompress.quant.format import QuantFormat, QuantizedTensor, check_finite
from sdcompress.quant.grid_format import GridFormat

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.rounding import Rounding
    from sdcompress.quant.statistics import LayerStatistics


def quantize_weight(
    weight: torch.Tensor, fmt: QuantFormat, rounding: Rounding, statistics: LayerStatistics | None = None
) -> QuantizedTensor:
    """The weight in `fmt`, its codes chosen by `rounding`; `statistics` of the layer's inputs, where there are any.

    Raises ValueError on NaN or Inf. Formats of bitsandbytes choose their codes themselves.
    """
    from sdcompress.quant.corrections.hadamard import rotated_statistics, rotated_weight

    if not isinstance(fmt, GridFormat):
        return fmt.quantize(weight)
    check_finite(weight)
    if fmt.hadamard:
        statistics = None if statistics is None else rotated_statistics(statistics, weight.shape[1])
        weight = rotated_weight(weight.float())
    if fmt.rank:
        return _with_low_rank(weight.float(), fmt, rounding, statistics)
    return replace(rounding.quantize(weight, fmt.plain(), statistics), format=fmt)


def restored(tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight that a quantized tensor stands for, any rotation of its input channels undone."""
    import torch

    from sdcompress.quant.corrections.hadamard import restored_weight

    if not tensor.format.hadamard:
        return tensor.dequantize(dtype)
    return restored_weight(tensor.dequantize(torch.float32)).to(dtype)


def _with_low_rank(
    weight: torch.Tensor, fmt: GridFormat, rounding: Rounding, statistics: LayerStatistics | None
) -> QuantizedTensor:
    import torch

    from sdcompress.quant.corrections.low_rank import product, split

    shape = tuple(weight.shape)
    up, down = split(weight, fmt.rank)
    rest = rounding.quantize(weight - product(up, down, shape), fmt.plain(), statistics)
    if statistics is not None:
        up, down = split(weight - rest.dequantize(torch.float32), fmt.rank, statistics)
    return replace(rest, format=fmt, low_rank_up=up, low_rank_down=down)
