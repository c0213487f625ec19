"""uint2 to uint6 and uint8: codes 0 .. 2^b - 1 with a zero point, in groups of input channels.

Uniform affine quantization, eq. 4 to 7 of Nagel et al. 2021 (arXiv:2106.08295): w' = s (q - z). The range of a group
always includes 0. A zero point is stored in a byte, of which the b highest bits count whole steps and the others
fractions of a step: at 2 bits it is exact to 1/64 of a step, while whole steps would move the range by up to a sixth
of its width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.quant import scales
from sdcompress.quant.grid import Grid
from sdcompress.quant.grid_format import GridFormat
from sdcompress.sources.spec import TensorSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor


@dataclass(frozen=True)
class Affine(GridFormat):
    """Codes with a zero point; a group is 32 input channels by default.

    Examples:
        >>> import torch
        >>> tensor = Affine("uint2", 2).quantize(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
        >>> tensor.codes.tolist(), tensor.scale.tolist(), tensor.zero_point.tolist()
        ([[0, 1, 2, 3]], [[1.0]], [[0]])
    """

    signed = False

    def grid_specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        parts = super().grid_specs(shape)
        return {"scale": parts.pop("scale"), "zero_point": TensorSpec(self.layout(shape).scale_shape, "U8", 0), **parts}

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None, search: bool) -> Grid:
        import torch

        from sdcompress.quant.fitting import best_range

        layout, top = self.layout(tuple(weight.shape)), 2**self.bits - 1
        grouped = layout.grouped(weight)  # [rows, groups, k]
        if search:
            if importance is None and not layout.even:  # what fills up the last group must not count
                importance = torch.ones(layout.columns, device=weight.device)
            exact, zero = best_range(grouped, layout.grouped_columns(importance), self.bits)
            return self.stored_grid(Grid(exact, zero, None, 0, top), tuple(weight.shape))
        lowest, highest = grouped.amin(dim=2).clamp_(max=0), grouped.amax(dim=2).clamp_(min=0)
        return self._grid((highest - lowest) / top, (highest + lowest) / 2, layout.scale_shape, up=True)

    def stored_grid(self, grid: Grid, shape: tuple[int, ...]) -> Grid:
        assert grid.scale is not None and grid.zero is not None
        middle = ((2**self.bits - 1) / 2 - grid.zero) * grid.scale  # kept while the scale is rounded
        return self._grid(grid.scale, middle, self.layout(shape).scale_shape, up=False)

    def _grid(self, scale: torch.Tensor, middle: torch.Tensor, shape: tuple[int, ...], up: bool) -> Grid:
        """Return the grid of these scales, rounded `up` or to nearest; `middle` is what the middle code stands for."""
        import torch

        top = 2**self.bits - 1
        parts = scales.store(scale, shape, self.scale_bits, up=up)
        stored = scales.fitted(parts)
        units = 2 ** (8 - self.bits)  # of a stored zero point, in a step
        zero = ((top / 2 - middle / stored) * units).round_().clamp_(0, 255)
        zero_point = zero.to(torch.uint8).view(zero.shape[0], *shape[1:])
        return Grid(stored, zero / units, None, 0, top, {**parts, "zero_point": zero_point})

    def zero_of(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor | None:
        assert tensor.zero_point is not None
        return tensor.zero_point.to(dtype) * 2.0 ** (self.bits - 8)


FORMATS = tuple(Affine(f"uint{bits}", bits) for bits in (2, 3, 4, 5, 6, 8))
