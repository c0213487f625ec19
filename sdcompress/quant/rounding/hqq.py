"""hqq: half-quadratic quantization, which fits the grid to most weights and lets a few be further off.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models" (mobiusml.github.io/hqq_blog): the
error's |.|_p with p < 1 is split into an error W_e that is to be sparse and a rest that is to be on the grid, and the
two are solved for by turns. W_e is what generalized soft thresholding leaves of the error; then the zero point, or
where a format has none its scale, is fitted to W - W_e. No calibration. The error is measured in steps of the grid, so
that the same `beta` suits weights of any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.quant.grid import nearest, value_of
from sdcompress.quant.rounding import Rounding, quantized_in_chunks

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor
    from sdcompress.quant.grid import Grid
    from sdcompress.quant.grid_format import GridFormat
    from sdcompress.quant.statistics import LayerStatistics


@dataclass(frozen=True)
class HQQ(Rounding):
    """`power` is p; `beta`, the weight of the rest, grows by `growth` at each of `turns`. Defaults are the authors'."""

    power: float = 0.7
    beta: float = 10.0
    growth: float = 1.01
    turns: int = 20

    name = "hqq"
    calibrated = False

    def quantize(self, weight: torch.Tensor, fmt: GridFormat, statistics: LayerStatistics | None) -> QuantizedTensor:
        def choose(rows: torch.Tensor) -> tuple[torch.Tensor, Grid]:
            grid = self.grid(rows, fmt)
            return fmt.nearest(rows, grid), grid

        return quantized_in_chunks(weight, fmt, choose)

    def grid(self, weight: torch.Tensor, fmt: GridFormat) -> Grid:
        """The grid of rows of a weight [rows, in, ...] in float32."""
        import torch

        layout = fmt.layout(tuple(weight.shape))
        grouped = layout.grouped(weight)  # [rows, groups, k]
        members = layout.grouped(torch.ones(1, *weight.shape[1:], device=weight.device))  # 0 where nothing is
        start = fmt.fit(weight, None, search=True)
        if start.scale is None:
            raise ValueError(f"hqq moves zero points and scales, and {fmt.name} has none; use search")
        levels, scale = start.levels, start.scale.unsqueeze(2)
        zero = None if start.zero is None else start.zero.unsqueeze(2)
        apart = 1.0 if levels is None else float(levels[-1] - levels[0]) / (len(levels) - 1)
        beta = self.beta
        for _ in range(self.turns):
            codes = nearest(grouped, scale, zero, levels, start.low, start.high)
            errors = (grouped - value_of(codes, scale, zero, levels)) / (scale * apart)
            rest = grouped - shrunk(errors, beta, self.power) * (scale * apart)
            if zero is not None:
                zero = ((codes - rest / scale) * members).sum(dim=2, keepdim=True) / members.sum(dim=2, keepdim=True)
            else:
                steps = value_of(codes, None, None, levels)
                square = steps.square().sum(dim=2, keepdim=True)
                scale = torch.where(square > 0, (rest * steps).sum(dim=2, keepdim=True) / square, scale)
            beta *= self.growth
        return fmt.stored_grid(scale.squeeze(2), None if zero is None else zero.squeeze(2), levels, tuple(weight.shape))


def shrunk(errors: torch.Tensor, beta: float, power: float) -> torch.Tensor:
    """What generalized soft thresholding leaves of the errors: sign(e) max(|e| - |e|^(p-1) / beta, 0)."""
    size = errors.abs()
    return (size - size.clamp(min=1e-12).pow(power - 1).div_(beta)).clamp_(min=0).mul_(errors.sign())
