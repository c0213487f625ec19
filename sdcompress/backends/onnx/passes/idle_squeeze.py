"""idle squeeze: remove a Squeeze of an axis that is larger than 1; torch's does nothing, but ONNX's fails."""

from __future__ import annotations

import onnx_ir as ir

from sdcompress.backends.onnx.passes.graph_edits import nodes_of, replace_value


def apply(model: ir.Model) -> tuple[int, int]:
    """Rewrite the graph. Candidates are Squeeze nodes whose result was traced with as many axes as the input."""
    nodes = [node for node in nodes_of(model.graph, "Squeeze") if _is_idle(node)]
    for node in nodes:
        before = node.inputs[0]
        assert before is not None
        replace_value(model.graph, node.outputs[0], before)
    return len(nodes), len(nodes)


def _is_idle(node: ir.Node) -> bool:
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None:
        return False
    return len(before.shape) == len(after.shape)
