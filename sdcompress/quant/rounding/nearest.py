"""nearest: each weight becomes the nearest value, on a grid wide enough that nothing is clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.quant.rounding import Rounding

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor
    from sdcompress.quant.grid_format import GridFormat
    from sdcompress.quant.statistics import LayerStatistics


@dataclass(frozen=True)
class Nearest(Rounding):
    """Rounding to nearest, which is what a format's `quantize` does."""

    name = "nearest"
    calibrated = False

    def quantize(self, weight: torch.Tensor, fmt: GridFormat, statistics: LayerStatistics | None) -> QuantizedTensor:
        return fmt.quantize(weight)
