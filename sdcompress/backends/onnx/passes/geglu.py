"""geglu: write a gated feed-forward's MatMul and Split as two MatMuls, so that no result is copied.

The halves of [x W + b] are a and g of a * gelu(g) (Shazeer 2020, arXiv:2002.05202); each has its own columns of W.
"""

from __future__ import annotations

import onnx_ir as ir

from sdcompress.backends.onnx.passes.graph_edits import insert, nodes_of, only_user, producer, replace_value
from sdcompress.backends.onnx.weights import add_rows, view_of


def apply(model: ir.Model) -> tuple[int, int]:
    """Rewrite the graph. Candidates are Splits in two of a linear layer's result along its last axis."""
    candidates = matched = 0
    for split in nodes_of(model.graph, "Split"):
        add = producer(split.inputs[0], "Add")
        matmul = None if add is None else producer(add.inputs[0], "MatMul")
        if add is None or matmul is None or len(split.outputs) != 2:
            continue
        weight, bias = matmul.inputs[1], add.inputs[1]
        if weight is None or bias is None or view_of(weight) is None or view_of(bias) is None:
            continue
        candidates += 1
        matched += _divide(model.graph, split, matmul.inputs[0], weight, bias)
    return candidates, matched


def _divide(graph: ir.Graph, split: ir.Node, x: ir.Value | None, weight: ir.Value, bias: ir.Value) -> bool:
    whole = split.inputs[0]
    assert whole is not None and whole.shape is not None and weight.shape is not None
    axis = split.attributes.get_int("axis", 0)
    width = weight.shape[1]
    if axis not in (-1, len(whole.shape) - 1) or not isinstance(width, int) or width % 2:
        return False
    if any(output.shape is None or output.shape[-1] != width // 2 for output in split.outputs):
        return False
    if only_user(whole, "Split") is None or len(weight.uses()) != 1 or len(bias.uses()) != 1:
        return False
    for output, rows in zip(list(split.outputs), ((0, width // 2), (width // 2, width)), strict=True):
        product = insert(graph, split, "MatMul", [x, add_rows(graph, weight, rows)], like=output)
        result = insert(graph, split, "Add", [product, add_rows(graph, bias, rows)], like=output)
        replace_value(graph, output, result)
    for value in (weight, bias):
        if not value.uses():
            del graph.initializers[value.name]  # type: ignore[arg-type]
    return True
