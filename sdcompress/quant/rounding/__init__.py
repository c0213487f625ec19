"""Ways of choosing the codes of a weight, each in a file of its own, and what they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sdcompress.quant.format import QuantizedTensor, check_finite

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.grid import Grid
    from sdcompress.quant.grid_format import GridFormat
    from sdcompress.quant.statistics import LayerStatistics


@dataclass(frozen=True)
class Rounding(ABC):
    """One way of choosing codes. A subclass in a file of `quant/rounding/` is found by its `name`."""

    name: ClassVar[str]
    calibrated: ClassVar[bool]  # whether it needs the statistics of the layer's inputs

    @abstractmethod
    def quantize(self, weight: torch.Tensor, fmt: GridFormat, statistics: LayerStatistics | None) -> QuantizedTensor:
        """The weight [out, in, ...] in `fmt`, whose corrections are not applied. Raises ValueError on NaN or Inf.

        statistics: of the columns of `weight.flatten(1)`; what is not calibrated does without.
        """


def quantized_in_chunks(
    weight: torch.Tensor, fmt: GridFormat, choose: Callable[[torch.Tensor], tuple[torch.Tensor, Grid]]
) -> QuantizedTensor:
    """The weight rounded some rows at a time: `choose` gives codes and grid of rows [rows, in, ...] in float32."""
    import torch

    pieces = []
    for rows in fmt.row_chunks(weight):
        values = rows.float()
        if not math.isfinite(float(values.sum())):
            check_finite(weight)
        pieces.append(fmt.assemble(*choose(values), tuple(rows.shape)).parts())
    joined = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    return QuantizedTensor.from_parts(joined, fmt, tuple(weight.shape))


def importance_of(weight: torch.Tensor, statistics: LayerStatistics | None, name: str) -> torch.Tensor:
    """[columns]: E[x^2] of what each column of the weight is multiplied with, where the weight is."""
    if statistics is None:
        raise ValueError(f"rounding {name} needs the statistics of the layer's inputs, and there are none")
    importance = statistics.second_moment.to(weight.device).float()
    columns = weight[0].numel()
    if importance.numel() != columns:
        raise ValueError(f"the statistics are of {importance.numel()} columns, and the weight has {columns}")
    if not bool(importance.isfinite().all()):
        raise ValueError("the statistics of the layer's inputs have NaN or infinite values")
    return importance
