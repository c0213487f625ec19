"""attention: write `Attention` of opset 23 as MatMul, Softmax and MatMul, for runtimes without such an operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sdcompress.backends.onnx.passes.attention_mask import additive_mask, can_be_added
from sdcompress.backends.onnx.passes.graph_edits import constant, insert, nodes_of, permutation, producer, replace_value

_KEYS_TRANSPOSED = (0, 2, 3, 1)  # [batch, sequence, heads, size] -> [batch, heads, size, sequence]


def apply(model: ir.Model) -> tuple[int, int]:
    """Rewrite the graph. Candidates are Attention nodes."""
    nodes = nodes_of(model.graph, "Attention")
    return len(nodes), sum(_decompose(model.graph, node) for node in nodes)


def _decompose(graph: ir.Graph, node: ir.Node) -> bool:
    """Write softmax(q k^T scale + mask) v. The queries are scaled, since the scores are larger."""
    query, key, value = node.inputs[:3]
    assert query is not None and key is not None and value is not None and query.shape is not None
    unknown = len(node.outputs) != 1 or any(each is not None for each in node.inputs[4:]) or not can_be_added(node)
    if unknown or node.attributes.get_float("softcap", 0.0) != 0.0 or node.attributes.get_int("is_causal", 0) != 0:
        return False
    size = query.shape[3]
    assert isinstance(size, int)
    dtype = query.dtype
    assert dtype is not None
    factor = node.attributes.get_float("scale", size**-0.5) or size**-0.5
    scale = constant(graph, f"attention_scale_{factor:.9g}", np.array(factor, dtype=dtype.numpy()))
    scores = insert(graph, node, "MatMul", [insert(graph, node, "Mul", [query, scale], like=query),
                                            _transposed_key(graph, node, key)])  # fmt: skip
    mask = additive_mask(graph, node)
    if mask is not None:
        scores = insert(graph, node, "Add", [scores, mask])
    shares = insert(graph, node, "Softmax", [scores], {"axis": -1})
    result = insert(graph, node, "MatMul", [shares, value], like=node.outputs[0])
    replace_value(graph, node.outputs[0], result)
    return True


def _transposed_key(graph: ir.Graph, node: ir.Node, key: ir.Value) -> ir.Value:
    before = producer(key, "Transpose")
    if before is not None and permutation(before) == (0, 2, 1, 3):
        return insert(graph, node, "Transpose", [before.inputs[0]], {"perm": _KEYS_TRANSPOSED})
    return insert(graph, node, "Transpose", [key], {"perm": (0, 1, 3, 2)})
