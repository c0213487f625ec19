"""search and weighted-search: the grid that loses least, and on it the nearest codes.

`search` minimises the squared error of the weights; `weighted-search` weights each column's by the second moment of
what it is multiplied with, which makes it the squared error of the layer's output as far as the columns are
uncorrelated. A row, or the rows that share a palette, for which the wide grid of rounding to nearest loses less keeps
that one: neither ever loses more than rounding to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.quant.grid import Grid
from sdcompress.quant.rounding import Rounding, importance_of, quantized_in_chunks

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor
    from sdcompress.quant.grid_format import GridFormat
    from sdcompress.quant.statistics import LayerStatistics


@dataclass(frozen=True)
class Search(Rounding):
    """The least squared error of the weights."""

    name = "search"
    calibrated = False

    def quantize(self, weight: torch.Tensor, fmt: GridFormat, statistics: LayerStatistics | None) -> QuantizedTensor:
        return quantized_in_chunks(weight, fmt, lambda rows: searched(rows, fmt, None))


@dataclass(frozen=True)
class WeightedSearch(Rounding):
    """The least squared error of the weights, each weighted by its column's E[x^2]."""

    name = "weighted-search"
    calibrated = True

    def quantize(self, weight: torch.Tensor, fmt: GridFormat, statistics: LayerStatistics | None) -> QuantizedTensor:
        importance = importance_of(weight, statistics, self.name)
        return quantized_in_chunks(weight, fmt, lambda rows: searched(rows, fmt, importance))


def searched(weight: torch.Tensor, fmt: GridFormat, importance: torch.Tensor | None) -> tuple[torch.Tensor, Grid]:
    """Codes, in the weight's shape, and grid of rows of a weight [rows, in, ...] that lose least of sum h (w - w')^2.

    importance: h of each column [columns], all alike if None.
    """
    groups = fmt.layout(tuple(weight.shape)).group_of_columns().to(weight.device)
    columns = weight.flatten(1)

    def rounded(grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        codes = fmt.nearest(weight, grid)
        errors = (grid.decode(codes.flatten(1), groups) - columns).square_()
        return codes, (errors if importance is None else errors.mul_(importance)).sum(dim=1)

    close, wide = fmt.fit(weight, importance, search=True), fmt.fit(weight, None, search=False)
    (close_codes, close_losses), (wide_codes, wide_losses) = rounded(close), rounded(wide)
    return better_rows((close_codes, close, close_losses), (wide_codes, wide, wide_losses), fmt)


def better_rows(
    one: tuple[torch.Tensor, Grid, torch.Tensor], other: tuple[torch.Tensor, Grid, torch.Tensor], fmt: GridFormat
) -> tuple[torch.Tensor, Grid]:
    """Codes and grid, row by row those that lose less; each of the two is codes, grid, and what each row loses.

    Rows that share a palette stay together.
    """
    import torch

    (codes, grid, losses), (other_codes, other_grid, other_losses) = one, other
    shared = _rows_to_a_palette(grid, len(losses), fmt)
    worse = _summed(losses, shared) > _summed(other_losses, shared)  # [rows / shared]
    if not bool(worse.any()):
        return codes, grid
    rows = worse.repeat_interleave(shared)[: len(losses)]
    mixed = torch.where(rows.view(-1, *[1] * (codes.dim() - 1)), other_codes, codes)
    return mixed, _mixed(grid, other_grid, rows, worse)


def _rows_to_a_palette(grid: Grid, rows: int, fmt: GridFormat) -> int:
    """How many rows share what is stored of the grid."""
    return (fmt.group_size or rows) if "palette" in grid.parts else 1


def _summed(losses: torch.Tensor, shared: int) -> torch.Tensor:
    import torch

    return torch.stack([part.sum() for part in losses.split(shared)]) if shared > 1 else losses


def _mixed(grid: Grid, other: Grid, rows: torch.Tensor, stored: torch.Tensor) -> Grid:
    """The first grid, and the other in the `rows` marked, which are stored where `stored` marks."""
    import torch

    def chosen(mark: torch.Tensor, one: torch.Tensor | None, another: torch.Tensor | None) -> torch.Tensor | None:
        if one is None or another is None:
            return one
        return torch.where(mark.view(-1, *[1] * (one.dim() - 1)), another, one)

    by_row = grid.levels is not None and grid.levels.dim() == 2
    levels = chosen(rows, grid.levels, other.levels) if by_row else grid.levels
    parts = {
        name: torch.where(stored.view(-1, *[1] * (part.dim() - 1)), other.parts[name], part)
        for name, part in grid.parts.items()
    }
    scale, zero = chosen(rows, grid.scale, other.scale), chosen(rows, grid.zero, other.zero)
    return Grid(scale, zero, levels, min(grid.low, other.low), max(grid.high, other.high), parts)
