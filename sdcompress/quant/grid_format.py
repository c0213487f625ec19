"""What our own formats below and above 4 bits share: groups, options, storing, and what codes stand for."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from sdcompress.errors import Problem
from sdcompress.quant import scales
from sdcompress.quant.format import PIECE, QuantFormat, QuantizedTensor, check_finite, divisors_near
from sdcompress.quant.grid import nearest, value_of
from sdcompress.quant.layout import Layout
from sdcompress.sources.spec import CONVOLUTIONS, Layer, TensorSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.grid import Grid


@dataclass(frozen=True)
class GridFormat(QuantFormat):
    """A format whose codes lie on a Grid. Groups are of input channels, at each kernel position apart."""

    kinds = frozenset({"linear", "embedding"}) | CONVOLUTIONS
    targets = frozenset({"torch"})
    options = frozenset({"scale_bits", "rank", "hadamard"})
    roundings: ClassVar[frozenset[str] | None] = None
    alternative = "int4"
    keeps_sensitive = True

    default_group: ClassVar[int | None]
    signed: ClassVar[bool]  # whether codes are int8, else uint8

    @property
    def group(self) -> int | None:
        """Input channels that share a scale."""
        return self.group_size or self.default_group

    @abstractmethod
    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None, search: bool) -> Grid:
        """The grid of rows of a weight [rows, in, ...], float32, wide enough that nothing is clipped.

        search: instead the one that loses least of sum h (w - w')^2; `importance` [columns] is h, all alike if None.
        """

    @abstractmethod
    def stored_grid(
        self, scale: torch.Tensor | None, zero: torch.Tensor | None, levels: torch.Tensor | None, shape: tuple[int, ...]
    ) -> Grid:
        """The nearest grid that can be stored, for rows of a weight of `shape`.

        scale, zero: [rows, groups]; levels: a palette's, [palettes, levels].
        """

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Which weights of a layer share a scale."""
        return Layout(shape, self.group, per_position=True)

    def kinds_for(self, target: str) -> frozenset[str]:
        # ONNX Runtime's Gather takes whole bytes.
        return self.kinds - {"embedding"} if target == "onnx" and self.bits < 8 else self.kinds

    def problem(self, layer: Layer, target: str = "torch") -> Problem | None:
        if target == "onnx" and (problem := self._onnx_problem(layer)):
            return problem
        if self.hadamard and layer.shape[1] % 2:
            what = f"an odd number of input channels cannot be rotated ({layer.name}); exclude the layer"
            return Problem("hadamard", what)
        if self.rank >= min(layer.shape[0], math.prod(layer.shape[1:])):
            return Problem("rank", f"{self.rank} is not below the rank of {layer.name} {list(layer.shape)}; use less")
        return None

    def _onnx_problem(self, layer: Layer) -> Problem | None:
        for option in sorted(self.options):
            if getattr(self, option) != getattr(type(self), option):
                return Problem(option, "cannot be packaged for target onnx; leave it out there")
        group = self.group
        if group is None:
            return None
        if self.bits < 8 and (group & (group - 1) or group < 16):
            return Problem("group_size", f"{group} is no power of two from 16 on, as ONNX Runtime's kernels need")
        return Problem("group_size", undivided(layer, group)) if layer.shape[1] % group else None

    def stored(self, weight: TensorSpec) -> dict[str, TensorSpec]:
        dtype = f"{'I' if self.signed else 'U'}{self.bits}"
        columns = math.prod(weight.shape[1:])
        parts = {"codes": TensorSpec(weight.shape, dtype, weight.parameters), **self.grid_specs(weight.shape)}
        if self.rank:
            parts["low_rank_up"] = TensorSpec((weight.shape[0], self.rank), "F16", 0)
            parts["low_rank_down"] = TensorSpec((self.rank, columns), "F16", 0)
        return parts

    def grid_specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        """Part of QuantizedTensor -> spec of what is stored of the grid."""
        return scales.specs(self.layout(shape).scale_shape, self.scale_bits)

    def quantize(self, weight: torch.Tensor) -> QuantizedTensor:
        """Rounded to nearest, some rows at a time."""
        import torch

        pieces = []
        for rows in self.row_chunks(weight):
            values = rows.float()
            if not math.isfinite(float(values.sum())):
                check_finite(weight)
            grid = self.fit(values, None, search=False)
            codes = self.nearest(values, grid)
            pieces.append(self.assemble(codes, grid, tuple(rows.shape)))
        if len(pieces) == 1:
            return pieces[0]
        parts = [piece.parts() for piece in pieces]
        joined = {name: torch.cat([each[name] for each in parts]) for name in parts[0]}
        return QuantizedTensor.from_parts(joined, self, tuple(weight.shape))

    def nearest(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The nearest codes, as float32, of rows of a weight [rows, in, ...], in its shape."""
        layout = self.layout(tuple(weight.shape))
        if not layout.even:
            return grid.encode(weight.flatten(1), layout.group_of_columns()).view(weight.shape)
        shape = (weight.shape[0], *layout.scale_shape[1:])
        scale = None if grid.scale is None else layout.spread(grid.scale.view(shape))
        zero = None if grid.zero is None else layout.spread(grid.zero.view(shape))
        return nearest(layout.split(weight), scale, zero, grid.levels, grid.low, grid.high).view(weight.shape)

    def row_chunks(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The weight in slices of whole rows whose grids do not depend on one another."""
        return weight.split(max(1, PIECE // max(1, weight[0].numel())))

    def assemble(self, codes: torch.Tensor, grid: Grid, shape: tuple[int, ...]) -> QuantizedTensor:
        """The quantized tensor of these codes [out, columns] on that grid."""
        import torch

        stored = codes.to(torch.int8 if self.signed else torch.uint8).view(shape)
        return QuantizedTensor.from_parts({"codes": stored, **grid.parts}, self, shape)

    def dequantize(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        weight = self._grid_value(tensor, dtype)
        if tensor.low_rank_up is None or tensor.low_rank_down is None:
            return weight
        correction = tensor.low_rank_up.to(dtype) @ tensor.low_rank_down.to(dtype)  # [out, columns]
        return weight.add_(correction.view(tensor.shape))

    def _grid_value(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        layout = self.layout(tensor.shape)
        levels = self.levels_of(tensor, dtype)
        codes = tensor.codes if levels is not None else tensor.codes.to(dtype)
        if tensor.scale is None:
            return value_of(codes, None, None, levels)
        scale, zero = scales.value(tensor.scale, tensor.scale_step, dtype), self.zero_of(tensor, dtype)
        place = layout.spread if layout.even else layout.expanded
        codes = layout.split(codes) if layout.even else codes
        return value_of(codes, place(scale), None if zero is None else place(zero), levels).view(tensor.shape)

    def zero_of(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor | None:
        """The zero points of a stored tensor, in steps; None: all 0."""
        return None

    def levels_of(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor | None:
        """The table of levels of a stored tensor; None: codes are numbers."""
        return None

    def plain(self) -> GridFormat:
        """The format without corrections: what is left to be rounded has it."""
        return replace(self, rank=0, hadamard=False)


def undivided(layer: Layer, group: int) -> str:
    """That groups do not divide a layer's input channels, and which would."""
    usable = divisors_near(layer.shape[1])
    *others, last = map(str, usable or [0])
    advice = f"use {' or '.join(filter(None, (', '.join(others), last)))}" if usable else "leave the layer out"
    return f"{group} does not divide {layer.shape[1]} ({layer.name}); {advice}"
