"""uint2 to uint6 and uint8: codes 0 .. 2^b - 1 with a zero point, in groups of input channels.

Uniform affine quantization, eq. 4 to 7 of Nagel et al. 2021 (arXiv:2106.08295): w' = s (q - z). The range of a group
always takes in 0. A zero point is a byte, of which the b highest bits count whole steps and the others fractions of
one: at 2 bits it is exact to 1/64 of a step, where whole steps would move the range by up to a sixth of its width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.quant import scales
from sdcompress.quant.fitting import best_range
from sdcompress.quant.grid import Grid
from sdcompress.quant.grid_format import GridFormat
from sdcompress.sources.spec import TensorSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor


@dataclass(frozen=True)
class Affine(GridFormat):
    """Codes with a zero point; 32 input channels to a group unless `group_size` says otherwise."""

    signed = False
    default_group = 32

    def grid_specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        parts = super().grid_specs(shape)
        return {"scale": parts.pop("scale"), "zero_point": TensorSpec(self.layout(shape).scale_shape, "U8", 0), **parts}

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None, search: bool) -> Grid:
        import torch

        layout = self.layout(tuple(weight.shape))
        grouped = layout.grouped(weight)  # [rows, groups, k]
        if search:
            if importance is None and not layout.even:  # what fills up the last group must not count
                importance = torch.ones(layout.columns, device=weight.device)
            exact, zero = best_range(grouped, layout.grouped_columns(importance), self.bits)
            return self.stored_grid(exact, zero, None, tuple(weight.shape))
        lowest, highest = grouped.amin(dim=2).clamp_(max=0), grouped.amax(dim=2).clamp_(min=0)
        top = 2**self.bits - 1
        return self._grid((highest - lowest) / top, (highest + lowest) / 2, layout.scale_shape, up=True)

    def stored_grid(
        self,
        scale: torch.Tensor | None,
        zero: torch.Tensor | None,
        levels: torch.Tensor | None,
        shape: tuple[int, ...],
    ) -> Grid:
        assert scale is not None and zero is not None
        middle = (
            (2**self.bits - 1) / 2 - zero
        ) * scale  # what the middle code stands for: kept as the scale is rounded
        return self._grid(scale, middle, self.layout(shape).scale_shape, up=False)

    def _grid(self, scale: torch.Tensor, middle: torch.Tensor, shape: tuple[int, ...], up: bool) -> Grid:
        """The grid of these scales, rounded `up` or to nearest; `middle` [rows, groups]: the middle code's value."""
        import torch

        top = 2**self.bits - 1
        parts = scales.store(scale, shape, self.scale_bits, up=up)
        stored = scales.fitted(parts)
        steps_of_zero = 2 ** (8 - self.bits)
        zero = ((top / 2 - middle / stored) * steps_of_zero).round_().clamp_(0, 255)
        zero_point = zero.to(torch.uint8).view(zero.shape[0], *shape[1:])
        ordered = {"scale": parts.pop("scale"), "zero_point": zero_point, **parts}
        return Grid(stored, zero / steps_of_zero, None, 0, top, ordered)

    def zero_of(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor | None:
        assert tensor.zero_point is not None
        return tensor.zero_point.to(dtype) * 2.0 ** (self.bits - 8)


@dataclass(frozen=True)
class UInt2(Affine):
    """2 bits."""

    name = "uint2"
    bits = 2


@dataclass(frozen=True)
class UInt3(Affine):
    """3 bits."""

    name = "uint3"
    bits = 3


@dataclass(frozen=True)
class UInt4(Affine):
    """4 bits."""

    name = "uint4"
    bits = 4


@dataclass(frozen=True)
class UInt5(Affine):
    """5 bits."""

    name = "uint5"
    bits = 5
    alternative = "int8"


@dataclass(frozen=True)
class UInt6(Affine):
    """6 bits."""

    name = "uint6"
    bits = 6
    alternative = "int8"


@dataclass(frozen=True)
class UInt8(Affine):
    """8 bits."""

    name = "uint8"
    bits = 8
    keeps_sensitive = False
    alternative = "int8"
