"""normal-float4: the levels of NF4 in groups of input channels, packed as our other formats are.

The 16 levels are those of QLoRA (arXiv:2305.14314), appendix E: quantiles of a normal distribution, one of them exactly
0, the outermost -1 and 1; a group's scale is its largest magnitude. Unlike bitsandbytes' `nf4`, groups stay inside an
output channel, scales are of 16 or 8 bits, and convolutions need no module of a library. There is a level more above 0
than below: a searched scale may be negative, which turns that round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.quant import scales
from sdcompress.quant.fitting import best_scale
from sdcompress.quant.grid import Grid, nearest, value_of
from sdcompress.quant.grid_format import GridFormat

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor
    from sdcompress.sources.spec import TensorSpec

# fmt: off
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on
FINE = 512  # entries for a scale's length of the table that a search looks levels up in


@dataclass(frozen=True)
class NormalFloat4(GridFormat):
    """32 input channels to a group unless `group_size` says otherwise."""

    name = "normal-float4"
    bits = 4
    signed = False
    default_group = 32

    def grid_specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        return scales.specs(self.layout(shape).scale_shape, self.scale_bits, signed=True)

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None, search: bool) -> Grid:
        import torch

        layout = self.layout(tuple(weight.shape))
        grouped = layout.grouped(weight)  # [rows, groups, k]
        if not search:
            return self._grid(grouped.abs().amax(dim=2), layout.scale_shape, up=True)
        places = (torch.arange(2 * FINE, device=weight.device) + 0.5) / FINE - 1
        levels = torch.tensor(LEVELS, device=weight.device)
        table = value_of(nearest(places, None, None, levels, 0, 15), None, None, levels)

        def rounded(steps: torch.Tensor) -> torch.Tensor:
            # Twenty times as fast as bisection, and off by half an entry at most; codes are chosen exactly.
            entries = steps.mul_(FINE).add_(FINE).clamp_(0, 2 * FINE - 1).int()
            return table.index_select(0, entries.reshape(-1)).view(steps.shape)

        columns = layout.grouped_columns(importance)
        exact = best_scale(grouped, columns, self.bits, top=1.0, rounded=rounded, signs=(1, -1))
        return self._grid(exact, layout.scale_shape, up=False)

    def stored_grid(
        self,
        scale: torch.Tensor | None,
        zero: torch.Tensor | None,
        levels: torch.Tensor | None,
        shape: tuple[int, ...],
    ) -> Grid:
        assert scale is not None
        return self._grid(scale, self.layout(shape).scale_shape, up=False)

    def _grid(self, scale: torch.Tensor, shape: tuple[int, ...], up: bool) -> Grid:
        import torch

        parts = scales.store(scale, shape, self.scale_bits, up=up, signed=True)
        return Grid(scales.fitted(parts), None, torch.tensor(LEVELS, device=scale.device), 0, 15, parts)

    def levels_of(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor | None:
        import torch

        return torch.tensor(LEVELS, dtype=dtype, device=tensor.codes.device)
