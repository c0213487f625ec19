"""linear: write linear layers as MatMul with the weight stored as [in, out], and Add if there is a bias.

The exporter leaves a Transpose between a weight and its MatMul, and writes Gemm for two-dimensional inputs. ONNX
Runtime turns two-dimensional ones into Gemm again, and quantized ones into integer kernels.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from sdcompress.backends.onnx.passes.graph_edits import (
    insert,
    nodes_of,
    permutation,
    producer,
    remove_unused,
    replace_value,
)
from sdcompress.backends.onnx.weights import set_view, view_of


def apply(model: ir.Model) -> tuple[int, int]:
    """Rewrite the graph. Candidates are MatMul and Gemm nodes whose second factor is a parameter's transpose."""
    graph = model.graph
    candidates = matched = 0
    for node in nodes_of(graph, "MatMul"):
        transpose = producer(node.inputs[1], "Transpose")
        weight = None if transpose is None else transpose.inputs[0]
        if transpose is None or weight is None or view_of(weight) is None:
            continue
        candidates += 1
        if permutation(transpose) == (1, 0) and all(use.node.op_type == "Transpose" for use in weight.uses()):
            _transpose_weight(weight)
        if _is_transposed(weight):
            node.replace_input_with(1, weight)
            remove_unused(graph, transpose)
            matched += 1
    for node in nodes_of(graph, "Gemm"):
        weight = node.inputs[1]
        if weight is None or view_of(weight) is None:
            continue
        candidates += 1
        plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if plain and node.attributes.get_int("transB", 0) == 1 and node.attributes.get_int("transA", 0) == 0:
            matched += _split_gemm(graph, node, weight)
    return candidates, matched


def _split_gemm(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> bool:
    if len(weight.uses()) != 1:
        return False
    _transpose_weight(weight)
    output = node.outputs[0]
    result = insert(graph, node, "MatMul", [node.inputs[0], weight], like=output)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = insert(graph, node, "Add", [result, node.inputs[2]], like=output)
    replace_value(graph, output, result)
    return True


def _is_transposed(weight: ir.Value) -> bool:
    view = view_of(weight)
    return view is not None and view.transposed


def _transpose_weight(weight: ir.Value) -> None:
    view = view_of(weight)
    assert view is not None and weight.shape is not None
    out_features, in_features = (int(size) for size in weight.shape)  # type: ignore[arg-type]
    set_view(weight, replace(view, transposed=True), (in_features, out_features))
