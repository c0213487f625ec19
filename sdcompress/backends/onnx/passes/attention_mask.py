"""The mask of an Attention node as a summand of its scores."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sdcompress.backends.onnx.passes.graph_edits import constant, insert


def mask_of(node: ir.Node) -> ir.Value | None:
    """Return the Attention node's mask, None if it has none."""
    return node.inputs[3] if len(node.inputs) > 3 else None


def can_be_added(node: ir.Node) -> bool:
    """Return whether the node has no mask, a boolean mask, or one of its output's type."""
    mask = mask_of(node)
    return mask is None or mask.dtype in (ir.DataType.BOOL, node.outputs[0].dtype)


def additive_mask(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """Return the mask to add to the scores: for a boolean mask, 0 where true and the type's least number elsewhere."""
    mask, dtype = mask_of(node), node.outputs[0].dtype
    if mask is None or mask.dtype != ir.DataType.BOOL:
        return mask
    assert dtype is not None
    for use in mask.uses():
        if use.node.op_type == "Where" and use.node.outputs[0].dtype == dtype:
            return use.node.outputs[0]
    kept = constant(graph, "mask_kept", np.array(0, dtype=dtype.numpy()))
    hidden = constant(graph, "mask_hidden", np.array(np.finfo(dtype.numpy()).min, dtype=dtype.numpy()))
    summand = insert(graph, node, "Where", [mask, kept, hidden])
    summand.shape, summand.type = mask.shape, ir.TensorType(dtype)
    return summand
