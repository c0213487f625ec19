"""gptq: columns one after another, each making up for the error of those before it in the layer's output.

GPTQ (Frantar et al. 2022, arXiv:2210.17323): the error of a layer's output is tr(E M E^T) with E = W - W' and M = E[x
x^T], and a column is rounded after adding what best makes up for the errors of the columns that already are. That is
Babai's nearest plane algorithm (Chen et al. 2025, arXiv:2507.18553): with M + damping = L L^T and the columns from the
last to the first, column i is rounded at w_i + sum_{j>i} (L_ji / L_ii) (w_j - w'_j). So no inverse is needed, and the
sum over whole blocks of columns is one matrix product (the "lazy" updates of the first paper).

The grid is fitted beforehand to the weights as they are ("static groups"), the columns of the largest second moment
come first ("act order"), and each block of M stands for itself. The grid is that of `search`, not of `weighted-search`:
what is rounded has the errors of other columns added, so that no column's grid may be poor because its inputs are
small. And it is a little wider, the more so the fewer the bits, since those errors widen what is rounded. Both were
measured on held-out inputs of tiny-sd: 0.3 dB of the output at 4 bits, 0.5 dB at 3 and 1.3 dB at 2 together. A row, or
the rows that share a palette, for which `weighted-search` loses less keeps that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.quant.format import QuantizedTensor, check_finite
from sdcompress.quant.rounding import Rounding, importance_of
from sdcompress.quant.rounding.search import better_rows, searched

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.grid import Grid
    from sdcompress.quant.grid_format import GridFormat
    from sdcompress.quant.statistics import LayerStatistics

LAZY = 128  # columns whose errors reach the columns before them at once


@dataclass(frozen=True)
class GPTQ(Rounding):
    """`damping` is added to the diagonal of M, as a fraction of its mean."""

    damping: float = 0.01

    name = "gptq"
    calibrated = True

    def quantize(self, weight: torch.Tensor, fmt: GridFormat, statistics: LayerStatistics | None) -> QuantizedTensor:
        import torch

        check_finite(weight)
        importance = importance_of(weight, statistics, self.name)
        assert statistics is not None
        exact = weight.float()
        grid = widened(searched(exact, fmt, None)[1], fmt, tuple(weight.shape))
        sizes = [block.shape[0] for block in statistics.moments]
        moments = [block.to(weight.device).float() for block in statistics.moments]
        groups = fmt.layout(tuple(weight.shape)).group_of_columns().to(weight.device).split(sizes)
        columns = exact.flatten(1).split(sizes, dim=1)
        codes = [
            gptq_codes(part, grid, place, moment, self.damping)
            for part, place, moment in zip(columns, groups, moments, strict=True)
        ]

        def losses(codes: Sequence[torch.Tensor], grid: Grid) -> torch.Tensor:
            parts = zip(columns, codes, groups, moments, strict=True)
            return torch.stack([output_errors(part, code, grid, *rest) for part, code, *rest in parts]).sum(dim=0)

        plain_codes, plain = searched(exact, fmt, importance)
        plain_losses = losses(plain_codes.flatten(1).split(sizes, dim=1), plain)
        joined = torch.cat(codes, dim=1).view(weight.shape)
        best = better_rows((joined, grid, losses(codes, grid)), (plain_codes, plain, plain_losses), fmt)
        return fmt.assemble(*best, tuple(weight.shape))


def widened(grid: Grid, fmt: GridFormat, shape: tuple[int, ...]) -> Grid:
    """The grid of a weight of that shape, 1/8 wider at 2 bits, 1/16 at 3 and so on."""
    factor = 1 + 0.5 * 2.0**-fmt.bits
    scale, zero, levels = grid.scale, grid.zero, grid.levels
    if scale is None:
        assert levels is not None
        middle = levels.mean(dim=1, keepdim=True)
        wider = (middle + (levels - middle) * factor)[:: fmt.group_size or shape[0]]
        return fmt.stored_grid(None, None, wider, shape)
    if zero is not None:
        centre = (grid.low + grid.high) / 2
        zero = centre + (zero - centre) / factor
    return fmt.stored_grid(scale * factor, zero, levels, shape)


def gptq_codes(
    columns: torch.Tensor, grid: Grid, groups: torch.Tensor, moment: torch.Tensor, damping: float
) -> torch.Tensor:
    """Codes [rows, b], as float32, of columns [rows, b] that belong to `groups` [b]; moment: [b, b]."""
    import torch

    # Ascending, since it goes from the last to the first.
    order = moment.diagonal().argsort(stable=True)
    factor = unit_factor(moment[order][:, order], damping)
    weight = columns[:, order].T.contiguous()  # [b, rows], so that a column is a run of memory
    errors, codes = torch.zeros_like(weight), torch.empty_like(weight)
    for end in range(len(order), 0, -LAZY):
        start = max(0, end - LAZY)
        wanted = torch.addmm(weight[start:end], factor[end:, start:end].T, errors[end:])
        for index in range(end - 1, start - 1, -1):
            target = wanted[index - start]
            group = groups[order[index : index + 1]]
            code = grid.encode(target.unsqueeze(1), group)
            codes[index] = code[:, 0]
            errors[index] = weight[index] - grid.decode(code, group)[:, 0]
            wanted[: index - start].addr_(factor[index, start:index], errors[index])
    result = torch.empty_like(columns)
    result[:, order] = codes.T
    return result


def unit_factor(moment: torch.Tensor, damping: float) -> torch.Tensor:
    """N, lower triangular with ones on its diagonal: M + damping = N D N^T, in float32.

    A column that was never anything but 0 gets the mean of the others on its diagonal; it has no part in their errors.
    damping: a fraction of the mean of the diagonal. It is raised tenfold until the sum is positive definite.
    """
    import torch

    # In float64, which Apple's GPUs do not have.
    exact = moment.to("cpu" if moment.device.type == "mps" else moment.device, torch.float64)
    diagonal = exact.diagonal()
    mean = float(diagonal.mean()) or 1.0
    fill = torch.where(diagonal > 0, 0.0, mean)
    while True:
        lower, failed = torch.linalg.cholesky_ex(exact + torch.diag(fill + damping * mean))
        if not int(failed):
            return (lower / lower.diagonal()).to(moment.device, torch.float32)
        damping = max(10 * damping, 1e-6)


def output_errors(
    columns: torch.Tensor, codes: torch.Tensor, grid: Grid, groups: torch.Tensor, moment: torch.Tensor
) -> torch.Tensor:
    """[rows]: the diagonal of E M E^T, what rounding these columns adds to the mean square of each output."""
    errors = columns - grid.decode(codes, groups)
    return ((errors @ moment) * errors).sum(dim=1)
