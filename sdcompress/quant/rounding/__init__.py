"""Ways of choosing the codes of a weight, one module each, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor
    from sdcompress.quant.grid_format import GridFormat
    from sdcompress.quant.statistics import LayerStatistics


@dataclass(frozen=True)
class Rounding(ABC):
    """One way of choosing codes. A subclass in a module of `quant/rounding/` is found by its `name`."""

    name: ClassVar[str]
    calibrated: ClassVar[bool]  # whether it needs the statistics of the layer's input

    @abstractmethod
    def quantize(self, weight: torch.Tensor, fmt: GridFormat, statistics: LayerStatistics | None) -> QuantizedTensor:
        """Return the weight in `fmt`, without the format's corrections.

        Args:
            weight: [out, in] or [out, in, kh, kw], of any floating-point type.
            fmt: the format.
            statistics: of the layer's input, for the columns of `weight.flatten(1)`; used only if `calibrated`.

        Raises:
            ValueError: the weight has NaN or infinite values, or statistics are needed and missing or do not fit.
        """


def importance_of(weight: torch.Tensor, statistics: LayerStatistics | None, name: str) -> torch.Tensor:
    """Return E[x^2] of the input of each column, [columns] float32 on the weight's device.

    Args:
        weight: [out, in, ...].
        statistics: of the layer's input.
        name: of the rounding, for the message.

    Raises:
        ValueError: there are no statistics, or they do not fit the weight, or are not finite.
    """
    if statistics is None:
        raise ValueError(f"rounding {name} needs the statistics of the layer's inputs, and there are none")
    importance = statistics.second_moment.to(weight.device).float()
    columns = weight[0].numel()
    if importance.numel() != columns:
        raise ValueError(f"the statistics are of {importance.numel()} columns, and the weight has {columns}")
    if not bool(importance.isfinite().all()):
        raise ValueError("the statistics of the layer's inputs have NaN or infinite values")
    return importance
