"""hqq: half-quadratic quantization, which fits the grid to most weights and allows a few larger errors.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models" (mobiusml.github.io/hqq_blog): the
error is measured by |.|_p with p < 1. It is split into a sparse error W_e and a rest that lies on the grid, and the two
are solved for alternately: W_e is the error after generalized soft thresholding; then the zero point, or the scale of a
format without zero points, is fitted to W - W_e. Needs no calibration. The error is measured in steps of the grid, so
that the same `beta` suits weights of any size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sdcompress.quant.grid import nearest, value_of
from sdcompress.quant.rounding import Rounding

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor
    from sdcompress.quant.grid import Grid
    from sdcompress.quant.grid_format import GridFormat
    from sdcompress.quant.statistics import LayerStatistics


@dataclass(frozen=True)
class HQQ(Rounding):
    """The smallest sum of |w - w'|^p that alternating finds. Defaults are the authors'.

    Args:
        power: p.
        beta: weight of the rest.
        growth: factor of `beta` at each iteration.
        iterations: their number.
    """

    power: float = 0.7
    beta: float = 10.0
    growth: float = 1.01
    iterations: int = 20

    name = "hqq"
    calibrated = False

    def quantize(self, weight: torch.Tensor, fmt: GridFormat, statistics: LayerStatistics | None) -> QuantizedTensor:
        def choose(rows: torch.Tensor) -> tuple[torch.Tensor, Grid]:
            grid = self.grid(rows, fmt)
            return fmt.nearest(rows, grid), grid

        return fmt.quantize_rows(weight, choose)

    def grid(self, weight: torch.Tensor, fmt: GridFormat) -> Grid:
        """Return the grid of rows of a weight [rows, in, ...] float32.

        Raises:
            ValueError: the format has neither scales nor zero points.
        """
        import torch

        layout = fmt.layout(tuple(weight.shape))
        grouped = layout.grouped(weight)  # [rows, groups, k]
        members = layout.grouped(torch.ones(1, *weight.shape[1:], device=weight.device))  # 0 where groups are filled up
        start = fmt.fit(weight, None, search=True)
        if start.scale is None:
            raise ValueError(f"hqq moves zero points and scales, and {fmt.name} has none; use search")
        levels, scale = start.levels, start.scale.unsqueeze(2)
        zero = None if start.zero is None else start.zero.unsqueeze(2)
        apart = 1.0 if levels is None else float(levels[-1] - levels[0]) / (len(levels) - 1)
        beta = self.beta
        for _ in range(self.iterations):
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
        found = replace(start, scale=scale.squeeze(2), zero=None if zero is None else zero.squeeze(2))
        return fmt.stored_grid(found, tuple(weight.shape))


def shrunk(errors: torch.Tensor, beta: float, power: float) -> torch.Tensor:
    """Return the errors e after generalized soft thresholding, sign(e) max(|e| - |e|^(p-1) / beta, 0).

    Examples:
        >>> import torch
        >>> shrunk(torch.tensor([-2.0, 0.1]), beta=10.0, power=0.5)
        tensor([-1.9293,  0.0000])
    """
    size = errors.abs()
    return (size - size.clamp(min=1e-12).pow(power - 1).div_(beta)).clamp_(min=0).mul_(errors.sign())
