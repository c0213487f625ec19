"""idle squeeze: a Squeeze of an axis that is not of size one taken out, where torch's does nothing and ONNX's fails."""

from __future__ import annotations

import onnx_ir as ir

from sdcompress.backends.onnx.passes.surgery import nodes_of, take_over


def apply(model: ir.Model) -> tuple[int, int]:
    """Candidates: Squeeze nodes whose result was traced with as many axes as their input has."""
    nodes = [node for node in nodes_of(model.graph, "Squeeze") if _is_idle(node)]
    for node in nodes:
        before = node.inputs[0]
        assert before is not None
        take_over(model.graph, node.outputs[0], before)
    return len(nodes), len(nodes)


def _is_idle(node: ir.Node) -> bool:
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None:
        return False
    return len(before.shape) == len(after.shape)
