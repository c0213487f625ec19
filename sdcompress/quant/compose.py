"""Quantize a weight with all options of a format: rotate it, take a low-rank part out, and round the rest.

The low-rank part is found twice: first as the largest singular part of the weight, so that what is rounded is smaller
(SVDQuant, arXiv:2411.05007, section 4.2); then, where the layer's inputs are known, again as the best correction of
the rounded rest's error in the layer's output (LQER, arXiv:2402.02446, section 3.2, with all of E[x x^T] instead of its
diagonal scaling; LoftQ, arXiv:2310.08659, section 3.2, alternates like this without inputs).
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
    """Return the weight in `fmt`, with its codes chosen by `rounding`.

    Args:
        weight: [out, in] or [out, in, kh, kw], of any floating-point type.
        fmt: the format with its options; formats of bitsandbytes choose the codes themselves.
        rounding: how codes are chosen.
        statistics: of the layer's input, as far as known.

    Raises:
        ValueError: the weight has NaN or infinite values, or the rounding needs statistics and gets none.

    Examples:
        >>> import torch
        >>> from sdcompress.quant.registry import from_label
        >>> from sdcompress.quant.rounding.search import Search
        >>> weight = torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 17))
        >>> tensor = quantize_weight(weight, from_label("uint3+rank1+hadamard"), Search())
        >>> {name: tuple(part.shape) for name, part in tensor.parts().items() if "rank" in name}
        {'low_rank_up': (8, 1), 'low_rank_down': (1, 16)}
        >>> bool((restored(tensor, torch.float32) - weight).abs().max() < 0.1)
        True
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
    """Return the weight that a quantized tensor stands for in `dtype`, with any rotation of input channels undone."""
    import torch

    from sdcompress.quant.corrections.hadamard import rotated_weight

    if not tensor.format.hadamard:
        return tensor.dequantize(dtype)
    return rotated_weight(tensor.dequantize(torch.float32)).to(dtype)  # rotating twice is not rotating


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
