"""rms normalization: write RMSNormalization of opset 23 as simple operators.

ONNX Runtime has no CPU kernel for it, and fuses these operators into a kernel of its own. y = x / sqrt(mean(x^2) + eps)
times a scale per channel (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sdcompress.backends.onnx.passes.graph_edits import constant, insert, nodes_of, replace_value


def apply(model: ir.Model) -> tuple[int, int]:
    """Rewrite the graph. Candidates are RMSNormalization nodes."""
    nodes = nodes_of(model.graph, "RMSNormalization")
    return len(nodes), sum(_replace(model.graph, node) for node in nodes)


def _replace(graph: ir.Graph, node: ir.Node) -> bool:
    x, scale = node.inputs
    if x is None or scale is None or x.dtype is None or node.attributes.get_int("axis", -1) != -1:
        return False
    # A sum of squares overflows in float16, and RMSNormalization too computes in float32 (stash_type 1).
    wide = x if x.dtype == ir.DataType.FLOAT else insert(graph, node, "Cast", [x], {"to": ir.DataType.FLOAT})
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    eps = constant(graph, f"rms_epsilon_{epsilon:.9g}", np.array(epsilon, dtype=np.float32))
    two = constant(graph, "rms_two", np.array(2, dtype=np.float32))
    last = constant(graph, "rms_last_axis", np.array([-1], dtype=np.int64))
    mean = insert(graph, node, "ReduceMean", [insert(graph, node, "Pow", [wide, two]), last], {"keepdims": 1})
    deviation = insert(graph, node, "Sqrt", [insert(graph, node, "Add", [mean, eps])])
    normalized = insert(graph, node, "Div", [wide, deviation])
    if wide is not x:
        normalized = insert(graph, node, "Cast", [normalized], {"to": x.dtype})
    result = insert(graph, node, "Mul", [normalized, scale], like=node.outputs[0])
    replace_value(graph, node.outputs[0], result)
    return True
