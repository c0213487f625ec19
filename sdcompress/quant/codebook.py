"""codebook2 to codebook8: each code stands for one of 2^b values, found by k-means (palettization).

A palette is shared by `group_size` output channels, or by the whole layer; as in Deep Compression (arXiv:1510.00149,
section 3), and in Apple's mixed-bit palettization. k-means in one dimension, weighted by the importance of each
weight's column where that is known (SqueezeLLM, arXiv:2306.07629, eq. 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.errors import Problem
from sdcompress.quant.grid import Grid
from sdcompress.quant.grid_format import GridFormat
from sdcompress.quant.k_means import k_means
from sdcompress.quant.layout import Layout
from sdcompress.sources.spec import Layer, TensorSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantizedTensor

LARGEST = 65504.0  # of float16, in which palettes are stored


@dataclass(frozen=True)
class Codebook(GridFormat):
    """`group_size` counts output channels that share a palette; all of a layer's unless given."""

    signed = False
    default_group = None
    options = frozenset({"rank", "hadamard"})
    roundings = frozenset({"nearest", "search", "weighted-search", "gptq"})

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return Layout(shape, None)

    def problem(self, layer: Layer, target: str = "torch") -> Problem | None:
        if self.group_size and self.group_size > layer.shape[0]:
            channels = layer.shape[0]
            what = f"{self.group_size} is more than the {channels} output channels of {layer.name}; use fewer"
            return Problem("group_size", what)
        return super().problem(layer, target)

    def grid_specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        return {"palette": TensorSpec((self._palettes(shape[0]), 2**self.bits), "F16", 0)}

    def row_chunks(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (weight,)  # palettes are fitted to all that share them

    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None, search: bool) -> Grid:
        import torch

        rows = weight.flatten(1)
        if importance is None:
            weights = torch.ones(rows.shape[1])
        else:
            # Columns that nothing goes into still get values that are near theirs.
            weights = importance.clamp(min=float(importance.max()) * 1e-6 or 1.0)
        shared = self.group_size or len(rows)
        palette = torch.stack([k_means(part, weights, 2**self.bits) for part in rows.split(shared)])
        return self.stored_grid(None, None, palette.to(weight.device, torch.float32), tuple(weight.shape))

    def stored_grid(
        self,
        scale: torch.Tensor | None,
        zero: torch.Tensor | None,
        levels: torch.Tensor | None,
        shape: tuple[int, ...],
    ) -> Grid:
        assert levels is not None
        stored = levels.clamp(-LARGEST, LARGEST).half().sort(dim=1).values
        of_rows = stored.float().repeat_interleave(self.group_size or shape[0], dim=0)[: shape[0]]
        return Grid(None, None, of_rows, 0, 2**self.bits - 1, {"palette": stored})

    def levels_of(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor | None:
        assert tensor.palette is not None
        palette = tensor.palette.to(dtype)
        if self.group_size is None:
            return palette[0]
        return palette.repeat_interleave(self.group_size, dim=0)[: tensor.shape[0]]

    def _palettes(self, out_channels: int) -> int:
        return 1 if self.group_size is None else -(-out_channels // self.group_size)


@dataclass(frozen=True)
class Codebook2(Codebook):
    """4 values."""

    name = "codebook2"
    bits = 2


@dataclass(frozen=True)
class Codebook3(Codebook):
    """8 values."""

    name = "codebook3"
    bits = 3


@dataclass(frozen=True)
class Codebook4(Codebook):
    """16 values."""

    name = "codebook4"
    bits = 4


@dataclass(frozen=True)
class Codebook5(Codebook):
    """32 values."""

    name = "codebook5"
    bits = 5
    alternative = "int8"


@dataclass(frozen=True)
class Codebook6(Codebook):
    """64 values."""

    name = "codebook6"
    bits = 6
    alternative = "int8"


@dataclass(frozen=True)
class Codebook8(Codebook):
    """256 values."""

    name = "codebook8"
    bits = 8
    keeps_sensitive = False
    alternative = "int8"
