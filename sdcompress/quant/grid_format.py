"""What sdcompress's own formats share: groups, options, storing, and what codes stand for."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from sdcompress.errors import Problem
from sdcompress.quant import scales
from sdcompress.quant.format import PIECE, QuantFormat, QuantizedTensor, check_finite
from sdcompress.quant.grid import nearest, value_of
from sdcompress.quant.layout import Layout
from sdcompress.sources.spec import CONVOLUTIONS, Layer, TensorSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.grid import Grid


@dataclass(frozen=True)
class GridFormat(QuantFormat):
    """A format whose codes lie on a Grid. `group_size` counts input channels, at each kernel position separately.

    A subclass says which grid suits a weight (`fit`), which grids can be stored (`stored_grid`), and how stored parts
    are read (`zero_of`, `levels_of`).
    """

    kinds = frozenset({"linear", "embedding"}) | CONVOLUTIONS
    options = frozenset({"scale_bits", "rank", "hadamard"})
    roundings: ClassVar[frozenset[str] | None] = None
    signed: ClassVar[bool]  # whether codes are int8; else they are uint8

    @property
    def default_group(self) -> int | None:
        """The group size unless `group_size` says otherwise; None: an output channel is one group."""
        return 32

    @property
    def signed_scales(self) -> bool:
        """Whether scales may be negative."""
        return False

    @abstractmethod
    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None, search: bool) -> Grid:
        """Return the grid of some rows of a weight.

        Args:
            weight: [rows, in] or [rows, in, kh, kw] float32.
            importance: h of each column, [columns] float32; None: all 1.
            search: return the grid with the smallest sum of h (w - w')^2; else one on which nothing is clipped.
        """

    @abstractmethod
    def stored_grid(self, grid: Grid, shape: tuple[int, ...]) -> Grid:
        """Return the nearest grid that can be stored, with its `parts`.

        Args:
            grid: scales, zero points and levels to be rounded; its codes and parts are not used.
            shape: of the rows of the weight, [rows, in, ...].
        """

    def zero_of(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the zero points of a stored tensor, in steps and the scales' shape; None: all 0."""
        return None

    def levels_of(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the table of levels of a stored tensor, [levels] or [out, levels]; None: codes are numbers."""
        return None

    @property
    def group(self) -> int | None:
        """Input channels that share a scale."""
        return self.group_size or self.default_group

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return which weights of a layer of that shape share a scale."""
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
        group, channels = self.group, layer.shape[1]
        if group is None:
            return None
        if self.bits < 8 and (group & (group - 1) or group < 16):
            return Problem("group_size", f"{group} is no power of two from 16 on, as ONNX Runtime's kernels need")
        if channels % group == 0:
            return None
        usable = [str(size) for size in (16, 32, 64, 128, 256) if channels % size == 0]
        *others, last = usable or [""]
        advice = f"use {' or '.join(filter(None, (', '.join(others), last)))}" if usable else "leave the layer out"
        return Problem("group_size", f"{group} does not divide {channels} ({layer.name}); {advice}")

    def stored(self, weight: TensorSpec) -> dict[str, TensorSpec]:
        dtype = f"{'I' if self.signed else 'U'}{self.bits}"
        columns = math.prod(weight.shape[1:])
        parts = {"codes": TensorSpec(weight.shape, dtype, weight.parameters), **self.grid_specs(weight.shape)}
        if self.rank:
            parts["low_rank_up"] = TensorSpec((weight.shape[0], self.rank), "F16", 0)
            parts["low_rank_down"] = TensorSpec((self.rank, columns), "F16", 0)
        return parts

    def grid_specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        """Return the specs of what is stored of the grid of a weight of that shape, by name."""
        return scales.specs(self.layout(shape).scale_shape, self.scale_bits, self.signed_scales)

    def quantize(self, weight: torch.Tensor) -> QuantizedTensor:
        def choose(rows: torch.Tensor) -> tuple[torch.Tensor, Grid]:
            grid = self.fit(rows, None, search=False)
            return self.nearest(rows, grid), grid

        return self.quantize_rows(weight, choose)

    def quantize_rows(
        self, weight: torch.Tensor, choose: Callable[[torch.Tensor], tuple[torch.Tensor, Grid]]
    ) -> QuantizedTensor:
        """Return the weight quantized some rows at a time.

        Args:
            weight: [out, in, ...], of any floating-point type.
            choose: returns codes [rows, in, ...] and grid of rows [rows, in, ...] float32.

        Raises:
            ValueError: the weight has NaN or infinite values.
        """
        import torch

        pieces = []
        for rows in self.row_chunks(weight):
            values = rows.float()
            if not math.isfinite(float(values.sum())):
                check_finite(weight)
            pieces.append(self.assemble(*choose(values), tuple(rows.shape)).parts())
        parts = pieces[0]
        if len(pieces) > 1:
            parts = {name: torch.cat([piece[name] for piece in pieces]) for name in parts}
        return QuantizedTensor.from_parts(parts, self, tuple(weight.shape))

    def shared_rows(self, rows: int) -> int:
        """Return how many of a layer's rows share the stored parts of the grid."""
        return 1

    def row_chunks(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the weight in slices of whole rows whose grids do not depend on each other."""
        return weight.split(max(1, PIECE // max(1, weight[0].numel())))

    def nearest(self, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Return the nearest codes of rows of a weight [rows, in, ...], as float32 in its shape."""
        layout = self.layout(tuple(weight.shape))
        shape = (weight.shape[0], *layout.scale_shape[1:])
        scale = None if grid.scale is None else layout.spread(grid.scale.view(shape))
        zero = None if grid.zero is None else layout.spread(grid.zero.view(shape))
        return nearest(layout.split(weight), scale, zero, grid.levels, grid.low, grid.high).view(weight.shape)

    def assemble(self, codes: torch.Tensor, grid: Grid, shape: tuple[int, ...]) -> QuantizedTensor:
        """Return the quantized tensor with these codes, of as many entries as `shape`, on that grid."""
        import torch

        stored = codes.to(torch.int8 if self.signed else torch.uint8).view(shape)
        return QuantizedTensor.from_parts({"codes": stored, **grid.parts}, self, shape)

    def dequantize(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        weight = self._value_of(tensor, dtype)
        if tensor.low_rank_up is None or tensor.low_rank_down is None:
            return weight
        correction = tensor.low_rank_up.to(dtype) @ tensor.low_rank_down.to(dtype)  # [out, in*kh*kw]
        return weight.add_(correction.view(tensor.shape))

    def _value_of(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        """Return what the codes stand for without the low-rank correction."""
        layout = self.layout(tensor.shape)
        levels = self.levels_of(tensor, dtype)
        if tensor.scale is None:
            return value_of(tensor.codes, None, None, levels)
        scale, zero = scales.value(tensor.scale, tensor.scale_step, dtype), self.zero_of(tensor, dtype)
        spread_zero = None if zero is None else layout.spread(zero)
        # Scales and zero points convert the codes.
        return value_of(layout.split(tensor.codes), layout.spread(scale), spread_zero, levels).view(tensor.shape)

    def plain(self) -> GridFormat:
        """Return the format without corrections, which is what the rest of a corrected weight is rounded to."""
        return replace(self, rank=0, hadamard=False)
