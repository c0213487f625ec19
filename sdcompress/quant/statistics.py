"""Statistics of a layer's input over the calibration run: mean and second moments, in bounded memory.

The second moment E[x x^T] is GPTQ's Hessian (Frantar et al. 2022, arXiv:2210.17323, section 3.1: H = 2 X X^T) up to the
factor 2 and the number of rows. A convolution is the linear layer of its patches, whose columns are those of
`weight.flatten(1)`: [in*kh*kw]. For wide layers only blocks on the diagonal are kept: the whole matrix of the widest
convolution of SD 1.5 has 23,040 columns and would take 2.1 GB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TILE = 256  # rows of a block that are computed at once; the triangle above them is left out
_PENDING_ROWS = 128  # rows multiplied together, so that a block is read and written once for all of them
# Kinds of devices that have float64 and do their work later. There sums stay on the device, and values that are not
# finite are found at the end, so that no layer waits for what the device has still to do.
_DEFERRED = frozenset({"cuda"})


@dataclass(frozen=True)
class Limits:
    """How much is gathered of a component's layers. All three change the statistics.

    Args:
        rows: of all runs of a layer together; of more rows each run gives a sample.
        columns: of a block.
        blocks_bytes: of all blocks of a component; blocks are made smaller until they fit.
    """

    rows: int = 2**14
    columns: int = 2048
    blocks_bytes: int = 2**31


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of a layer's input; columns are those of `weight.flatten(1)`.

    Args:
        count: rows counted: tokens of a linear layer, output positions of a convolution.
        mean: E[x], [columns] float32.
        moments: blocks on the diagonal of E[x x^T], each [b, b] float32; their sizes add up to `columns`.
    """

    count: int
    mean: torch.Tensor
    moments: tuple[torch.Tensor, ...]

    @property
    def second_moment(self) -> torch.Tensor:
        """E[x^2] of each column, [columns] float32."""
        import torch

        return torch.cat([block.diagonal() for block in self.moments])


def block_sizes(columns: int, multiple: int, limit: int) -> tuple[int, ...]:
    """Return sizes of blocks that add up to `columns`: as few and as even as possible.

    Args:
        columns: of the layer.
        multiple: of which all sizes are multiples: the columns of an input channel, kh*kw or 1.
        limit: largest size; but a block holds at least one channel.

    Raises:
        ValueError: `multiple` does not divide `columns`.

    Examples:
        >>> block_sizes(3456, 9, 2048)
        (1728, 1728)
    """
    if columns < 1 or multiple < 1 or columns % multiple:
        raise ValueError(f"{columns} columns are no whole number of channels of {multiple} columns")
    channels = columns // multiple
    blocks = -(-channels // max(limit // multiple, 1))
    return tuple((channels // blocks + (place < channels % blocks)) * multiple for place in range(blocks))


def fitting_limit(layers: Iterable[tuple[int, int]], limits: Limits) -> int:
    """Return the largest size of blocks with which those of all layers fit `limits.blocks_bytes`.

    Args:
        layers: columns, and columns of an input channel, of each.
        limits: of the component.
    """
    layers = tuple(layers)

    def size_bytes(limit: int) -> int:
        return sum(4 * size**2 for columns, multiple in layers for size in block_sizes(columns, multiple, limit))

    limit = limits.columns
    while limit > 1 and size_bytes(limit) > limits.blocks_bytes:
        limit = limit * 7 // 8
    return limit


class MomentAccumulator:
    """Sums over the rows of a layer's input.

    Takes 4 bytes for each entry of a block, and for each value of fewer than _PENDING_ROWS rows.

    Args:
        sizes: of the blocks.

    Examples:
        >>> import torch
        >>> accumulator = MomentAccumulator((2,))
        >>> accumulator.add(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        >>> statistics = accumulator.statistics()
        >>> statistics.mean.tolist(), statistics.moments[0].tolist()
        ([2.0, 1.0], [[5.0, 1.0], [1.0, 2.0]])
    """

    def __init__(self, sizes: Sequence[int]):
        self.count = 0  # rows added
        self.calls = 0  # how often rows were added
        self.sizes = tuple(sizes)
        self._sum: torch.Tensor | None = None  # [columns] float64, on the CPU unless the device is _DEFERRED
        self._blocks: list[torch.Tensor] = []  # each [b, b] float32; above the diagonal undefined
        self._pending: list[torch.Tensor] = []  # rows counted, and not yet in the blocks

    def add(self, rows: torch.Tensor) -> None:
        """Add rows [n, columns] of any floating-point type.

        Raises:
            ValueError: a value is NaN or infinite; where the device is _DEFERRED, `statistics` raises it.
        """
        import torch

        rows = rows.float()
        total = rows.sum(0)  # of float32 rows, pairwise; a value that is not finite makes its column so
        if rows.device.type not in _DEFERRED:
            total = total.cpu()
            if not bool(total.isfinite().all()):
                bad = int((~rows.isfinite()).sum())
                raise ValueError(f"{bad} of {rows.numel()} values are NaN or infinite")
        if self._sum is None:
            self._sum = torch.zeros(sum(self.sizes), dtype=torch.float64, device=total.device)
        if not self._blocks:
            self._blocks = [rows.new_zeros(size, size) for size in self.sizes]
        self._sum += total
        self.count += rows.shape[0]
        self.calls += 1
        self._pending.append(rows)
        if sum(map(len, self._pending)) >= _PENDING_ROWS:
            self.flush()
        else:
            self._pending[-1] = rows.clone()  # which the layer may overwrite

    def flush(self) -> None:
        """Add pending rows to the blocks. When that is done changes the sums by a rounding error."""
        import torch

        if self._pending:
            rows = torch.cat(self._pending) if len(self._pending) > 1 else self._pending[0]
            self._pending = []
            for block, part in zip(self._blocks, rows.split(self.sizes, dim=1), strict=True):
                _add_lower_triangle(block, part)

    def statistics(self) -> LayerStatistics:
        """Return the statistics of the rows so far, on the CPU.

        Raises:
            ValueError: no row was added, a value is NaN or infinite, or squares overflow float32.
        """
        import torch

        if self._sum is None:
            raise ValueError("no row was seen, so there are no statistics")
        total = self._sum.cpu()
        if bad := int((~total.isfinite()).sum()):
            raise ValueError(f"{bad} of {total.numel()} columns have values that are NaN or infinite")
        self.flush()
        moments = []
        for block in self._blocks:
            lower = block.cpu() / self.count
            if not bool(lower.diagonal().isfinite().all()):
                raise ValueError("squares of its values do not fit float32")
            lower.tril_()
            moments.append(lower + lower.tril(-1).T)
        return LayerStatistics(self.count, (total / self.count).to(torch.float32), tuple(moments))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return all that `load_state_dict` needs; it shares memory with the accumulator, which it flushes."""
        import torch

        if self._sum is None:
            return {}
        self.flush()
        counts = torch.tensor([self.count, self.calls])
        return {"counts": counts, "sum": self._sum, **{f"block.{i}": block for i, block in enumerate(self._blocks)}}

    def load_state_dict(self, state: Mapping[str, torch.Tensor], device: torch.device | None = None) -> None:
        """Continue from the state of another accumulator, with the blocks on `device`, where rows will be."""
        if not state:
            return
        self.count, self.calls = (int(count) for count in state["counts"])
        self._sum = state["sum"].to(device if device is not None and device.type in _DEFERRED else "cpu")
        self._blocks = [state[f"block.{place}"].to(device) for place in range(len(self.sizes))]


def _add_lower_triangle(block: torch.Tensor, rows: torch.Tensor) -> None:
    """Add rows^T rows to the block, tile by tile, up to the diagonal, which takes 0.6 of the time of all of it."""
    size = block.shape[0]
    for start in range(0, size, _TILE):
        end = min(start + _TILE, size)
        block[start:end, :end].addmm_(rows[:, start:end].T, rows[:, :end])
