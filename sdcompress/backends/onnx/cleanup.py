"""Folding constants and removing what the exporter leaves over, with onnxscript's own optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


_NEXT_TO_ZERO = 1e-7


def clean_up(model: ir.Model) -> None:
    """Fold constants, merge equal computations and drop unused nodes, in place; parameters keep names and shapes."""
    from onnx_ir.passes import common
    from onnxscript import optimizer

    with parameters_as_inputs(model), _tiny_constants_as_inputs(model):
        optimizer.optimize_ir(model, onnx_shape_inference=False, stop_if_no_change=True)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]


@contextmanager
def _tiny_constants_as_inputs(model: ir.Model) -> Iterator[None]:
    """Turn constants close to zero into inputs while in the context, since the optimizer drops additions of them.

    Its patterns compare with a tolerance of 1e-8. Sana divides by a sum to which 1e-15 is added because it may be zero.
    """
    import numpy as np
    import onnx_ir as ir

    held: dict[ir.Value, ir.TensorProtocol] = {}
    for node in [node for node in model.graph if node.op_type == "Constant" and "value" in node.attributes]:
        tensor = node.attributes["value"].as_tensor()
        if tensor.size == 1 and tensor.dtype.is_floating_point() and 0 < np.abs(tensor.numpy()).item() <= _NEXT_TO_ZERO:
            shape, dtype = ir.Shape(tensor.numpy().shape), ir.TensorType(tensor.dtype)
            value = ir.Value(name=f"tiny_{node.outputs[0].name}", shape=shape, type=dtype)
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            model.graph.remove(node, safe=True)
            held[value] = tensor
    model.graph.inputs.extend(held)
    try:
        yield
    finally:
        if held:
            del model.graph.inputs[-len(held) :]
        for value, tensor in held.items():
            value.const_value = tensor
            model.graph.initializers.add(value)


def parameters_of(model: ir.Model) -> dict[str, ir.Value]:
    """Return name -> initializer, for those without a value: the component's parameters."""
    return {name: value for name, value in model.graph.initializers.items() if value.const_value is None}


@contextmanager
def parameters_as_inputs(model: ir.Model) -> Iterator[list[str]]:
    """Turn parameters into inputs while in the context, so that nothing reads their values; yield their names."""
    parameters = parameters_of(model)
    for name in parameters:
        del model.graph.initializers[name]
    count = len(model.graph.inputs)
    model.graph.inputs.extend(parameters.values())
    try:
        yield list(parameters)
    finally:
        del model.graph.inputs[count:]
        for value in parameters.values():
            model.graph.initializers.add(value)
