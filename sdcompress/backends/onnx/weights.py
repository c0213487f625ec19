"""Where the values of a graph's parameters come from: views of tensors in the component's file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

_KEY = "sdcompress.view"


@dataclass(frozen=True)
class WeightView:
    """A component's tensor as a graph uses it: `rows` of its first axis, then as a matrix, then transposed."""

    tensor: str
    rows: tuple[int, int] | None = None
    matrix: bool = False  # a 1x1 convolution's weight [out, in, 1, 1] as [out, in]
    transposed: bool = False

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the view of the weight, or of a tensor with the weight's axes, such as its codes."""
        if self.rows is not None:
            tensor = tensor[self.rows[0] : self.rows[1]]
        if self.matrix:
            tensor = tensor.reshape(tensor.shape[:2])
        return tensor.t() if self.transposed else tensor


def view_of(value: ir.Value) -> WeightView | None:
    """Return the view that an initializer without a value stands for; None for graph constants."""
    if not value.is_initializer() or value.const_value is not None:
        return None
    view = value.meta.get(_KEY)
    return view if isinstance(view, WeightView) else WeightView(str(value.name))


def set_view(value: ir.Value, view: WeightView, shape: tuple[int, ...]) -> None:
    """Let the initializer stand for `view`, whose shape is `shape`."""
    import onnx_ir as ir

    value.meta[_KEY] = view
    value.shape = ir.Shape(shape)


def add_rows(graph: ir.Graph, of: ir.Value, rows: tuple[int, int]) -> ir.Value:
    """Return a new initializer for some rows of the parameter that `of` stands for.

    Args:
        rows: start and stop in the weight as the file has it.
    """
    import onnx_ir as ir

    view = view_of(of)
    assert view is not None and view.rows is None and of.shape is not None
    part = replace(view, rows=rows)
    count, sizes = rows[1] - rows[0], tuple(int(size) for size in of.shape)  # type: ignore[arg-type]
    shape = (*sizes[:-1], count) if view.transposed else (count, *sizes[1:])
    value = ir.Value(
        name=f"{view.tensor}[{rows[0]}:{rows[1]}]", type=ir.TensorType(of.dtype) if of.dtype is not None else None
    )
    set_view(value, part, shape)
    graph.initializers.add(value)
    return value
