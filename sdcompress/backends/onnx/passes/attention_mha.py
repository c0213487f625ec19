"""attention: `Attention` of opset 23 as ONNX Runtime's `com.microsoft.MultiHeadAttention`.

MultiHeadAttention takes queries, keys and values as [batch, sequence, hidden], so the four transposes that split the
heads and put them together again go too. It computes softmax(q k^T scale + bias) v head by head in cache-sized tiles.
"""

from __future__ import annotations

import onnx_ir as ir

from sdcompress.backends.onnx.passes.attention_mask import additive_mask, can_be_added, mask_of
from sdcompress.backends.onnx.passes.surgery import (
    CONTRIB,
    insert,
    nodes_of,
    permutation,
    producer,
    sole_user,
    take_over,
)

SPLIT_HEADS = (0, 2, 1, 3)


def apply(model: ir.Model) -> tuple[int, int]:
    """Candidates: Attention nodes."""
    nodes = nodes_of(model.graph, "Attention")
    matched = sum(_fuse(model.graph, node) for node in nodes)
    if matched:
        model.opset_imports.setdefault(CONTRIB, 1)
    return len(nodes), matched


def _fuse(graph: ir.Graph, node: ir.Node) -> bool:
    factors = [_before_heads(value) for value in node.inputs[:3]]
    merged = _after_heads(node.outputs[0])
    query = node.inputs[0]
    if any(value is None for value in factors) or merged is None or len(node.outputs) != 1:
        return False
    if any(value is not None for value in node.inputs[4:]) or node.attributes.get_float("softcap", 0.0) != 0.0:
        return False
    mask = mask_of(node)
    if not can_be_added(node) or (mask is not None and (mask.shape is None or len(mask.shape) != 4)):
        return False  # MultiHeadAttention takes all four axes
    assert query is not None and query.shape is not None
    heads, size = query.shape[1], query.shape[3]
    assert isinstance(heads, int) and isinstance(size, int)
    attributes: dict[str, int | float] = {
        "num_heads": heads,
        "scale": node.attributes.get_float("scale", size**-0.5) or size**-0.5,
    }
    if node.attributes.get_int("is_causal", 0):
        attributes["unidirectional"] = 1
    inputs = factors if mask is None else [*factors, None, None, additive_mask(graph, node)]
    last = merged.producer()
    assert last is not None
    result = insert(graph, last, "MultiHeadAttention", inputs, attributes, domain=CONTRIB, like=merged)
    take_over(graph, merged, result)
    return True


def _before_heads(value: ir.Value | None) -> ir.Value | None:
    """[batch, sequence, hidden] that was reshaped and transposed to `value`: [batch, heads, sequence, size]."""
    transpose = producer(value, "Transpose")
    if transpose is None or permutation(transpose) != SPLIT_HEADS:
        return None
    reshape = producer(transpose.inputs[0], "Reshape")
    before = None if reshape is None else reshape.inputs[0]
    return before if before is not None and before.shape is not None and len(before.shape) == 3 else None


def _after_heads(value: ir.Value) -> ir.Value | None:
    """[batch, sequence, hidden] that `value`, [batch, heads, sequence, size], becomes and nothing else."""
    transpose = sole_user(value, "Transpose")
    if transpose is None or permutation(transpose) != SPLIT_HEADS:
        return None
    reshape = sole_user(transpose.outputs[0], "Reshape")
    return None if reshape is None or reshape.outputs[0].shape is None else reshape.outputs[0]
