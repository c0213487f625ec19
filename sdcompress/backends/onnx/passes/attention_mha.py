"""attention: write `Attention` of opset 23 as ONNX Runtime's `com.microsoft.MultiHeadAttention`.

MultiHeadAttention takes queries, keys and values as [batch, sequence, hidden], so the four transposes that split and
merge the heads go too. It computes softmax(q k^T scale + bias) v head by head in tiles that fit a processor's cache.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sdcompress.backends.onnx.passes.attention_mask import additive_mask, can_be_added, mask_of
from sdcompress.backends.onnx.passes.graph_edits import (
    CONTRIB,
    constant,
    insert,
    nodes_of,
    only_user,
    permutation,
    producer,
    replace_value,
)

SPLIT_HEADS = (0, 2, 1, 3)


def apply(model: ir.Model) -> tuple[int, int]:
    """Rewrite the graph. Candidates are Attention nodes."""
    nodes = nodes_of(model.graph, "Attention")
    matched = sum(_fuse(model.graph, node) for node in nodes)
    if matched:
        model.opset_imports.setdefault(CONTRIB, 1)
    return len(nodes), matched


def _fuse(graph: ir.Graph, node: ir.Node) -> bool:
    merged = _after_heads(node.outputs[0])
    query = node.inputs[0]
    if len(node.outputs) != 1 or query is None or query.shape is None:
        return False
    if any(value is not None for value in node.inputs[4:]) or node.attributes.get_float("softcap", 0.0) != 0.0:
        return False
    mask = mask_of(node)
    if not can_be_added(node) or (mask is not None and (mask.shape is None or len(mask.shape) != 4)):
        return False  # MultiHeadAttention takes all four axes
    heads, size = query.shape[1], query.shape[3]
    same = all(each is not None and each.shape is not None and each.shape[1] == heads for each in node.inputs[:3])
    if not isinstance(heads, int) or not isinstance(size, int) or not same:
        return False  # fewer heads of keys than of queries
    factors = [_before_heads(value) or _joined_heads(graph, node, value, heads * size) for value in node.inputs[:3]]
    attributes: dict[str, int | float] = {
        "num_heads": heads,
        "scale": node.attributes.get_float("scale", size**-0.5) or size**-0.5,
    }
    if node.attributes.get_int("is_causal", 0):
        attributes["unidirectional"] = 1
    inputs = factors if mask is None else [*factors, None, None, _for_each_query(graph, node, factors[0])]
    last = node if merged is None else merged.producer()
    assert last is not None
    result = insert(graph, last, "MultiHeadAttention", inputs, attributes, domain=CONTRIB, like=merged)
    replace_value(graph, merged or node.outputs[0], result if merged is not None else _split_heads(graph, node, result))
    return True


def _for_each_query(graph: ir.Graph, node: ir.Node, query: ir.Value) -> ir.Value | None:
    """Return the mask to add, with a row for each query: MultiHeadAttention does not accept one row for all."""
    mask = additive_mask(graph, node)
    heads_apart = node.inputs[0]
    assert heads_apart is not None and heads_apart.shape is not None
    if mask is None or mask.shape is None:
        return mask
    rows = mask.shape[2]
    # If a mask is made for heads and batch together, its number of rows is unknown, though it is one.
    if (isinstance(rows, int) and rows > 1) or str(rows) == str(heads_apart.shape[2]):
        return mask
    one = constant(graph, "attention_one", np.array([1], dtype=np.int64))
    queries = insert(graph, node, "Shape", [query], {"start": 1, "end": 2})
    shape = insert(graph, node, "Concat", [one, one, queries, one], {"axis": 0})
    expanded = insert(graph, node, "Expand", [mask, shape])
    expanded.type = mask.type
    return expanded


def _joined_heads(graph: ir.Graph, node: ir.Node, value: ir.Value | None, hidden: int) -> ir.Value:
    """Return `value`, [batch, heads, sequence, size], as [batch, sequence, hidden].

    For heads that were changed apart: by rotary positions, a norm, or text tokens joined to them.
    """
    assert value is not None
    transpose = producer(value, "Transpose")
    if transpose is not None and permutation(transpose) == SPLIT_HEADS:
        apart = transpose.inputs[0]
    else:
        apart = insert(graph, node, "Transpose", [value], {"perm": SPLIT_HEADS})
        apart.type = value.type
    shape = constant(graph, f"attention_hidden_{hidden}", np.array([0, 0, hidden], dtype=np.int64))
    joined = insert(graph, node, "Reshape", [apart, shape])
    joined.type = value.type
    return joined


def _split_heads(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """Return `value`, [batch, sequence, hidden], as [batch, heads, sequence, size], the shape of the node's output."""
    output = node.outputs[0]
    assert output.shape is not None
    heads, size = output.shape[1], output.shape[3]
    shape = constant(graph, f"attention_heads_{heads}_{size}", np.array([0, 0, heads, size], dtype=np.int64))
    value.type = output.type
    apart = insert(graph, node, "Reshape", [value, shape])
    apart.type = output.type
    return insert(graph, node, "Transpose", [apart], {"perm": SPLIT_HEADS}, like=output)


def _before_heads(value: ir.Value | None) -> ir.Value | None:
    """Return the [batch, sequence, hidden] that was reshaped and transposed to `value`; None if there is none."""
    transpose = producer(value, "Transpose")
    if transpose is None or permutation(transpose) != SPLIT_HEADS:
        return None
    reshape = producer(transpose.inputs[0], "Reshape")
    before = None if reshape is None else reshape.inputs[0]
    return before if before is not None and before.shape is not None and len(before.shape) == 3 else None


def _after_heads(value: ir.Value) -> ir.Value | None:
    """Return the [batch, sequence, hidden] to which `value` is transposed and reshaped; None if it has other users."""
    transpose = only_user(value, "Transpose")
    if transpose is None or permutation(transpose) != SPLIT_HEADS:
        return None
    reshape = only_user(transpose.outputs[0], "Reshape")
    return None if reshape is None or reshape.outputs[0].shape is None else reshape.outputs[0]
