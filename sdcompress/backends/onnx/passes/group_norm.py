"""group normalization: write GroupNormalization as InstanceNormalization of groups, with scale and shift per channel.

ONNX Runtime has no CPU kernel for GroupNormalization and needs ten passes over the data; its InstanceNormalization
computes the statistics in one. The numbers are the same: normalizing a group is normalizing an instance of one channel
that holds the whole group (Wu & He 2018, arXiv:1803.08494, section 3).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sdcompress.backends.onnx.passes.graph_edits import constant, insert, nodes_of, replace_value
from sdcompress.backends.onnx.weights import view_of


def apply(model: ir.Model) -> tuple[int, int]:
    """Rewrite the graph. Candidates are GroupNormalization nodes."""
    nodes = nodes_of(model.graph, "GroupNormalization")
    return len(nodes), sum(_replace(model.graph, node) for node in nodes)


def _replace(graph: ir.Graph, node: ir.Node) -> bool:
    x, scale, shift = node.inputs
    if x is None or scale is None or shift is None or x.shape is None or x.dtype is None:
        return False
    rank, groups = len(x.shape), node.attributes.get_int("num_groups", 0)
    numpy_dtype = x.dtype.numpy()
    grouping = constant(graph, f"group_shape_{groups}", np.array([0, groups, -1], dtype=np.int64))
    ones = constant(graph, f"ones_{groups}", np.ones(groups, dtype=numpy_dtype))
    zeros = constant(graph, f"zeros_{groups}", np.zeros(groups, dtype=numpy_dtype))
    grouped = insert(graph, node, "Reshape", [x, grouping])
    grouped.type = ir.TensorType(x.dtype)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    normal = insert(graph, node, "InstanceNormalization", [grouped, ones, zeros], {"epsilon": epsilon}, like=grouped)
    shape = insert(graph, node, "Shape", [x])
    normal = insert(graph, node, "Reshape", [normal, shape], like=x)
    # Parameters keep their shape in the file, [channels]. ONNX Runtime folds the reshape when a session opens.
    per_channel = constant(graph, f"per_channel_{rank}", np.array([-1] + [1] * (rank - 2), dtype=np.int64))
    scaled = insert(graph, node, "Mul", [normal, _per_channel(graph, node, scale, per_channel)], like=x)
    result = insert(graph, node, "Add", [scaled, _per_channel(graph, node, shift, per_channel)], like=x)
    replace_value(graph, node.outputs[0], result)
    return True


def _per_channel(graph: ir.Graph, node: ir.Node, value: ir.Value, shape: ir.Value) -> ir.Value:
    assert view_of(value) is not None or value.const_value is not None
    reshaped = insert(graph, node, "Reshape", [value, shape])
    return reshaped
