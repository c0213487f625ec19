"""search and weighted-search: the grid with the smallest error, and on it the nearest codes.

`search` minimises the squared error of the weights. `weighted-search` weights each column's by the second moment of
its input, which makes it the squared error of the layer's output as far as the columns are uncorrelated. A row, or the
rows that share a palette, keeps the wide grid of rounding to nearest where that has a smaller error: neither is ever
worse than rounding to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.quant.grid import Grid
from sdcompress.quant.rounding import Rounding, importance_of

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor
    from sdcompress.quant.grid_format import GridFormat
    from sdcompress.quant.statistics import LayerStatistics


@dataclass(frozen=True)
class Search(Rounding):
    """The smallest squared error of the weights.

    Examples:
        >>> import torch
        >>> from sdcompress.quant.registry import from_label
        >>> weight, fmt = torch.tensor([[-4.0, 3.0, 1.0, -1.0]]), from_label("int3")
        >>> fmt.quantize(weight).dequantize(torch.float32), Search().quantize(weight, fmt, None).codes.tolist()
        (tensor([[-4.0020,  2.6680,  1.3340, -1.3340]]), [[-4, 3, 1, -1]])
    """

    name = "search"
    calibrated = False

    def quantize(self, weight: torch.Tensor, fmt: GridFormat, statistics: LayerStatistics | None) -> QuantizedTensor:
        return _quantized(weight, fmt, None)


@dataclass(frozen=True)
class WeightedSearch(Rounding):
    """The smallest squared error of the weights, each weighted by its column's E[x^2]."""

    name = "weighted-search"
    calibrated = True

    def quantize(self, weight: torch.Tensor, fmt: GridFormat, statistics: LayerStatistics | None) -> QuantizedTensor:
        return _quantized(weight, fmt, importance_of(weight, statistics, self.name))


def _quantized(weight: torch.Tensor, fmt: GridFormat, importance: torch.Tensor | None) -> QuantizedTensor:
    def choose(rows: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        found = searched(rows, fmt, importance)
        return found.codes, found.grid

    return fmt.quantize_rows(weight, choose)


@dataclass(frozen=True)
class Rounded:
    """Rows of a weight as codes on a grid.

    Args:
        codes: [rows, in, ...] float32.
        grid: of these rows.
        losses: the error of each row, [rows].
    """

    codes: torch.Tensor
    grid: Grid
    losses: torch.Tensor


def searched(weight: torch.Tensor, fmt: GridFormat, importance: torch.Tensor | None) -> Rounded:
    """Return rows of a weight with the smallest sum of h (w - w')^2 in each row.

    Args:
        weight: [rows, in, ...] float32.
        fmt: the format.
        importance: h of each column, [columns]; None: all 1.
    """
    groups = fmt.layout(tuple(weight.shape)).group_of_columns().to(weight.device)
    columns = weight.flatten(1)  # [rows, columns]

    def rounded(grid: Grid) -> Rounded:
        codes = fmt.nearest(weight, grid)
        errors = (grid.decode(codes.flatten(1), groups) - columns).square_()
        return Rounded(codes, grid, (errors if importance is None else errors.mul_(importance)).sum(dim=1))

    return better_rows(
        rounded(fmt.fit(weight, importance, search=True)), rounded(fmt.fit(weight, None, search=False)), fmt
    )


def better_rows(first: Rounded, second: Rounded, fmt: GridFormat) -> Rounded:
    """Return the rows of `first`, or of `second` where they have a smaller error; rows of a palette stay together."""
    import torch

    count = len(first.losses)
    shared = fmt.shared_rows(count)
    worse = _summed(first.losses, shared) > _summed(second.losses, shared)  # [rows / shared]
    if not bool(worse.any()):
        return first
    rows = worse.repeat_interleave(shared)[:count]
    codes = torch.where(_like(rows, first.codes), second.codes, first.codes)
    grid = _mixed(first.grid, second.grid, rows, worse)
    return Rounded(codes, grid, torch.where(rows, second.losses, first.losses))


def _summed(losses: torch.Tensor, shared: int) -> torch.Tensor:
    import torch

    return torch.stack([part.sum() for part in losses.split(shared)]) if shared > 1 else losses


def _like(mark: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return a mark of rows in a shape that broadcasts with the tensor."""
    return mark.view(-1, *[1] * (tensor.dim() - 1))


def _mixed(first: Grid, second: Grid, rows: torch.Tensor, stored: torch.Tensor) -> Grid:
    """Return the first grid, with the second's in the marked `rows`, which are stored where `stored` marks."""
    import torch

    def chosen(mark: torch.Tensor, one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
        return one if one is None or other is None else torch.where(_like(mark, one), other, one)

    by_row = first.levels is not None and first.levels.dim() == 2
    return Grid(
        chosen(rows, first.scale, second.scale),
        chosen(rows, first.zero, second.zero),
        chosen(rows, first.levels, second.levels) if by_row else first.levels,
        min(first.low, second.low),
        max(first.high, second.high),
        {name: torch.where(_like(stored, part), second.parts[name], part) for name, part in first.parts.items()},
    )
