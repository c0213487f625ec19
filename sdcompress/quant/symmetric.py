"""int2 to int6 and int8: symmetric codes, one scale per group of input channels, or per output channel for int8.

Eq. 2 of Nagel et al. 2021 (arXiv:2106.08295) with zero point 0: q = round(w / s). Rounded to nearest, codes are in
[-(2^(b-1)-1), 2^(b-1)-1] and s = max|w| / (2^(b-1)-1) is rounded *up*, so that no code is clipped and |w - w'| <= s/2.
A searched scale may clip, and below 8 bits uses -2^(b-1) too and may be negative, so that the one code more is on the
side that needs it (as in llama.cpp's q4_0): 0.4 dB at 4 bits and 0.7 dB at 2 for no byte. The default group is 32 input
channels below 8 bits, at each kernel position apart, as in ONNX's blocked DequantizeLinear (opset 21).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sdcompress.quant import scales
from sdcompress.quant.fitting import best_scale
from sdcompress.quant.grid import Grid
from sdcompress.quant.grid_format import GridFormat

if TYPE_CHECKING:
    import torch

    from sdcompress.sources.spec import TensorSpec


@dataclass(frozen=True)
class Symmetric(GridFormat):
    """Codes without a zero point."""

    signed = True
    default_group: ClassVar[int | None] = 32

    @property
    def high(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1

    @property
    def low(self) -> int:
        """The smallest code."""
        return -self.high - (1 if self.bits < 8 else 0)

    def grid_specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        return scales.specs(self.layout(shape).scale_shape, self.scale_bits, signed=self.low != -self.high)

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None, search: bool) -> Grid:
        layout = self.layout(tuple(weight.shape))
        grouped = layout.grouped(weight)  # [rows, groups, k]
        if not search:
            return self._grid(self.largest(weight, grouped) / self.high, layout.scale_shape, -self.high, up=True)
        low, high = self.low, self.high
        exact = best_scale(
            grouped,
            layout.grouped_columns(importance),
            self.bits,
            top=(high - low) / 2,
            rounded=lambda steps: steps.round_().clamp_(low, high),
            signs=(1,) if low == -high else (1, -1),
        )
        return self._grid(exact, layout.scale_shape, low, up=False)

    def largest(self, weight: torch.Tensor, grouped: torch.Tensor) -> torch.Tensor:
        """[rows, groups]: what the largest code stands for."""
        return grouped.abs().amax(dim=2)

    def stored_grid(
        self,
        scale: torch.Tensor | None,
        zero: torch.Tensor | None,
        levels: torch.Tensor | None,
        shape: tuple[int, ...],
    ) -> Grid:
        assert scale is not None
        return self._grid(scale, self.layout(shape).scale_shape, self.low, up=False)

    def _grid(self, scale: torch.Tensor, shape: tuple[int, ...], low: int, up: bool) -> Grid:
        parts = scales.store(scale, shape, self.scale_bits, up=up, signed=self.low != -self.high)
        return Grid(scales.fitted(parts), None, None, low, self.high, parts)


@dataclass(frozen=True)
class Int2(Symmetric):
    """2 bits."""

    name = "int2"
    bits = 2


@dataclass(frozen=True)
class Int3(Symmetric):
    """3 bits."""

    name = "int3"
    bits = 3


@dataclass(frozen=True)
class Int4(Symmetric):
    """4 bits; the one of these that ONNX has a type for."""

    name = "int4"
    bits = 4
    targets = frozenset({"torch", "onnx"})


@dataclass(frozen=True)
class Int5(Symmetric):
    """5 bits."""

    name = "int5"
    bits = 5
    alternative = "int8"


@dataclass(frozen=True)
class Int6(Symmetric):
    """6 bits."""

    name = "int6"
    bits = 6
    alternative = "int8"
