"""int2 to int6 and int8: symmetric codes, with one scale for each group of input channels, or each output channel.

Eq. 2 of Nagel et al. 2021 (arXiv:2106.08295) with zero point 0: q = round(w / s). Rounded to nearest, codes are in
[-(2^(b-1)-1), 2^(b-1)-1] and s = max|w| / (2^(b-1)-1) is rounded *up*, so that no code is clipped and |w - w'| <= s/2.
A searched scale may clip. Below 8 bits it also uses -2^(b-1) and may be negative, so that the additional code is on
the side that needs it (as in llama.cpp's q4_0): 0.4 dB at 4 bits and 0.7 dB at 2 without a byte more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.quant import scales
from sdcompress.quant.grid import Grid
from sdcompress.quant.grid_format import GridFormat
from sdcompress.quant.layout import Layout

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Symmetric(GridFormat):
    """Codes without a zero point.

    Below 8 bits a group is 32 input channels by default, at each kernel position separately, as in ONNX's blocked
    DequantizeLinear (opset 21). At 8 bits it is an output channel (of an embedding: a row), or `group_size` input
    channels at all kernel positions together.

    Examples:
        >>> import torch
        >>> fmt = Symmetric("int3", 3)
        >>> tensor = fmt.quantize(torch.tensor([[0.75, -0.25, 0.5, 0.1]]))
        >>> tensor.codes.tolist(), tensor.dequantize(torch.float32)
        ([[3, -1, 2, 0]], tensor([[ 0.7500, -0.2500,  0.5000,  0.0000]]))
    """

    signed = True

    @property
    def targets(self) -> frozenset[str]:
        # ONNX has integer types of 4 and 8 bits.
        return frozenset({"torch", "onnx"}) if self.bits in (4, 8) else frozenset({"torch"})

    @property
    def default_group(self) -> int | None:
        return 32 if self.bits < 8 else None

    @property
    def signed_scales(self) -> bool:
        return self.bits < 8

    @property
    def high(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1

    @property
    def low(self) -> int:
        """The smallest code."""
        return -self.high - (1 if self.bits < 8 else 0)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return Layout(shape, self.group, per_position=self.bits < 8)

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None, search: bool) -> Grid:
        from sdcompress.quant.fitting import best_scale

        layout, low, high = self.layout(tuple(weight.shape)), self.low, self.high
        grouped = layout.grouped(weight)  # [rows, groups, k]
        if not search:
            return self._grid(self.largest(weight, grouped) / high, layout.scale_shape, -high, up=True)
        exact = best_scale(
            grouped,
            layout.grouped_columns(importance),
            self.bits,
            top=(high - low) / 2,
            rounded=lambda steps: steps.round_().clamp_(low, high),
            signs=(1, -1) if self.signed_scales else (1,),
        )
        return self._grid(exact, layout.scale_shape, low, up=False)

    def largest(self, weight: torch.Tensor, grouped: torch.Tensor) -> torch.Tensor:
        """Return what the largest code stands for, [rows, groups].

        Args:
            weight: [rows, in, ...].
            grouped: the same weights as [rows, groups, k].
        """
        return grouped.abs().amax(dim=2)

    def stored_grid(self, grid: Grid, shape: tuple[int, ...]) -> Grid:
        assert grid.scale is not None
        return self._grid(grid.scale, self.layout(shape).scale_shape, self.low, up=False)

    def _grid(self, scale: torch.Tensor, shape: tuple[int, ...], low: int, up: bool) -> Grid:
        parts = scales.store(scale, shape, self.scale_bits, up=up, signed=self.signed_scales)
        return Grid(scales.fitted(parts), None, None, low, self.high, parts)


FORMATS = tuple(Symmetric(f"int{bits}", bits) for bits in (2, 3, 4, 5, 6, 8))
