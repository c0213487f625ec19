"""normal-float4: the levels of NF4 in groups of input channels, packed as our other formats are.

The 16 levels are those of QLoRA (arXiv:2305.14314), appendix E: quantiles of a normal distribution, one of them exactly
0, the outermost -1 and 1; a group's scale is its largest magnitude. Unlike in bitsandbytes' `nf4`, groups stay inside
an output channel, scales have 16 or 8 bits, and convolutions need no module of a library. There is one level more
above 0 than below; a negative scale, which a search may choose, reverses that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.quant import scales
from sdcompress.quant.grid import Grid, nearest, value_of
from sdcompress.quant.grid_format import GridFormat

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor

# fmt: off
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on
FINE = 512  # entries per unit of the table in which a search looks levels up


@dataclass(frozen=True)
class NormalFloat4(GridFormat):
    """Codes of NF4's levels; a group is 32 input channels by default.

    Examples:
        >>> import torch
        >>> tensor = NormalFloat4("normal-float4", 4).quantize(torch.tensor([[-2.0, 0.01, 1.1, 2.0]]))
        >>> tensor.codes.tolist(), tensor.dequantize(torch.float32)
        ([[0, 7, 13, 15]], tensor([[-2.0000,  0.0000,  1.1252,  2.0000]]))
    """

    signed = False

    @property
    def signed_scales(self) -> bool:
        return True

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None, search: bool) -> Grid:
        import torch

        from sdcompress.quant.fitting import best_scale

        layout = self.layout(tuple(weight.shape))
        grouped = layout.grouped(weight)  # [rows, groups, k]
        if not search:
            return self._grid(grouped.abs().amax(dim=2), layout.scale_shape, up=True)
        places = (torch.arange(2 * FINE, device=weight.device) + 0.5) / FINE - 1
        levels = torch.tensor(LEVELS, device=weight.device)
        table = value_of(nearest(places, None, None, levels, 0, 15), None, None, levels)

        def rounded(steps: torch.Tensor) -> torch.Tensor:
            # Twenty times as fast as bisection, and off by at most half an entry; codes are chosen exactly afterwards.
            entries = steps.mul_(FINE).add_(FINE).clamp_(0, 2 * FINE - 1).int()
            return table.index_select(0, entries.reshape(-1)).view(steps.shape)

        columns = layout.grouped_columns(importance)
        exact = best_scale(grouped, columns, self.bits, top=1.0, rounded=rounded, signs=(1, -1))
        return self._grid(exact, layout.scale_shape, up=False)

    def stored_grid(self, grid: Grid, shape: tuple[int, ...]) -> Grid:
        assert grid.scale is not None
        return self._grid(grid.scale, self.layout(shape).scale_shape, up=False)

    def _grid(self, scale: torch.Tensor, shape: tuple[int, ...], up: bool) -> Grid:
        import torch

        parts = scales.store(scale, shape, self.scale_bits, up=up, signed=True)
        return Grid(scales.fitted(parts), None, torch.tensor(LEVELS, device=scale.device), 0, 15, parts)

    def levels_of(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor | None:
        from sdcompress.quant.constants import table

        return table(LEVELS, dtype, tensor.codes.device)


FORMATS = (NormalFloat4("normal-float4", 4),)
