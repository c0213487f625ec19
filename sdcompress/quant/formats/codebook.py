"""codebook2 to codebook6 and codebook8: each code stands for one of 2^b values, found by k-means (palettization).

Output channels share a palette, as in Deep Compression (arXiv:1510.00149, section 3) and in Apple's mixed-bit
palettization. k-means in one dimension is weighted by the importance of each weight's column where that is known
(SqueezeLLM, arXiv:2306.07629, eq. 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.errors import Problem
from sdcompress.quant.grid import Grid
from sdcompress.quant.grid_format import GridFormat
from sdcompress.quant.layout import Layout
from sdcompress.sources.spec import Layer, TensorSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor

LARGEST = 65504.0  # of float16, in which palettes are stored


@dataclass(frozen=True)
class Codebook(GridFormat):
    """Codes of a palette's values. `group_size` counts the output channels that share a palette; by default all do.

    Examples:
        >>> import torch
        >>> tensor = Codebook("codebook2", 2).quantize(torch.tensor([[1.0, 1.0, 4.0], [-2.0, 7.0, 4.0]]))
        >>> tensor.palette.tolist(), tensor.codes.tolist()
        ([[-2.0, 1.0, 4.0, 7.0]], [[1, 1, 2], [0, 3, 2]])
    """

    signed = False
    options = frozenset({"rank", "hadamard"})
    roundings = frozenset({"nearest", "search", "weighted-search", "gptq"})

    @property
    def default_group(self) -> int | None:
        return None

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return Layout(shape, None)

    def problem(self, layer: Layer, target: str = "torch") -> Problem | None:
        channels = layer.shape[0]
        if self.group_size and self.group_size > channels:
            what = f"{self.group_size} is more than the {channels} output channels of {layer.name}; use fewer"
            return Problem("group_size", what)
        return super().problem(layer, target)

    def grid_specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        palettes = 1 if self.group_size is None else -(-shape[0] // self.group_size)
        return {"palette": TensorSpec((palettes, 2**self.bits), "F16", 0)}

    def shared_rows(self, rows: int) -> int:
        return self.group_size or rows

    def row_chunks(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (weight,)  # a palette is fitted to all rows that share it

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None, search: bool) -> Grid:
        import torch

        from sdcompress.quant.k_means import k_means

        rows = weight.flatten(1)  # [rows, columns]
        if importance is None:
            weights = torch.ones(rows.shape[1])
        else:
            # Columns without input still get values that are near theirs.
            weights = importance.clamp(min=float(importance.max()) * 1e-6 or 1.0)
        parts = rows.split(self.shared_rows(len(rows)))
        palettes = torch.stack([k_means(part, weights, 2**self.bits) for part in parts])  # [palettes, levels]
        return self._grid(palettes.to(weight.device, torch.float32), len(rows))

    def stored_grid(self, grid: Grid, shape: tuple[int, ...]) -> Grid:
        assert grid.levels is not None
        return self._grid(grid.levels[:: self.shared_rows(shape[0])], shape[0])

    def levels_of(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor | None:
        assert tensor.palette is not None
        palette = tensor.palette.to(dtype)
        if self.group_size is None:
            return palette[0]
        return palette.repeat_interleave(self.group_size, dim=0)[: tensor.shape[0]]

    def _grid(self, palettes: torch.Tensor, rows: int) -> Grid:
        """Return the grid of these palettes, [palettes, levels] float32, rounded to float16."""
        stored = palettes.clamp(-LARGEST, LARGEST).half().sort(dim=1).values
        of_rows = stored.float().repeat_interleave(self.shared_rows(rows), dim=0)[:rows]  # [rows, levels]
        return Grid(None, None, of_rows, 0, 2**self.bits - 1, {"palette": stored})


FORMATS = tuple(Codebook(f"codebook{bits}", bits) for bits in (2, 3, 4, 5, 6, 8))
