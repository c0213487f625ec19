"""Folding of constants and removal of what the exporter leaves over, by onnxscript's own optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def clean_up(model: ir.Model) -> None:
    """Folds constants, merges equal computations and drops unused nodes, in place; parameters keep names and shapes."""
    from onnx_ir.passes import common
    from onnxscript import optimizer

    with parameters_as_inputs(model):
        optimizer.optimize_ir(model, onnx_shape_inference=False, stop_if_no_change=True)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]


def parameters_of(model: ir.Model) -> dict[str, ir.Value]:
    """Name -> initializer of all that has no value yet: the component's parameters."""
    return {name: value for name, value in model.graph.initializers.items() if value.const_value is None}


@contextmanager
def parameters_as_inputs(model: ir.Model) -> Iterator[list[str]]:
    """While in the context the parameters, whose names it gives, are inputs: nothing may look for their values."""
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
