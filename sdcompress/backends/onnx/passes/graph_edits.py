"""Edits of a graph: inserting nodes, replacing values, adding constants, and looking at neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

CONTRIB = "com.microsoft"


def insert(
    graph: ir.Graph,
    before: ir.Node,
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    domain: str = "",
    like: ir.Value | None = None,
) -> ir.Value:
    """Insert a node in front of `before` and return its only output, with the type and shape of `like`."""
    node = ir.node(op, inputs, attributes, domain=domain)
    graph.insert_before(before, node)
    output = node.outputs[0]
    if like is not None:
        copy_type(output, like)
    return output


def copy_type(value: ir.Value, like: ir.Value) -> None:
    """Give `value` the shape and the type of `like`; the type is a copy, since values may change theirs."""
    value.shape = like.shape
    value.type = None if like.dtype is None else ir.TensorType(like.dtype)


def replace_value(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Replace `old` by `new` everywhere, outputs of the graph included, and remove nodes that only `old` needed."""
    if old.is_graph_output():
        replace_output(graph, old, new)
    ir.convenience.replace_all_uses_with(old, new)
    remove_unused(graph, old.producer())


def replace_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Make `new` the graph's output in place of `old`, under the same name."""
    for index, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[index] = new
    old.name, new.name = new.name, old.name


def remove_unused(graph: ir.Graph, node: ir.Node | None) -> None:
    """Remove the node if nothing uses it, and then nodes before it that are unused too."""
    if node is None or node.graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
        return
    before = [value.producer() for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for each in before:
        remove_unused(graph, each)


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Return the initializer `name`; add it with these values if the graph lacks it."""
    there = graph.initializers.get(name)
    if there is not None:
        return there
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    graph.initializers.add(value)
    return value


def producer(value: ir.Value | None, op: str) -> ir.Node | None:
    """Return the node that computes `value` if it is an `op` of the standard domain, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op and node.domain in ("", "ai.onnx") else None


def only_user(value: ir.Value, op: str) -> ir.Node | None:
    """Return the only node that uses `value` if it is an `op` and `value` is no output of the graph, else None."""
    users = value.consumers() if hasattr(value, "consumers") else tuple(use.node for use in value.uses())
    if len(users) != 1 or value.is_graph_output() or users[0].op_type != op:
        return None
    return users[0]


def nodes_of(graph: ir.Graph, *ops: str) -> list[ir.Node]:
    """Return the graph's nodes of these standard operators, in order."""
    return [node for node in graph if node.op_type in ops and node.domain in ("", "ai.onnx")]


def permutation(node: ir.Node | None) -> tuple[int, ...] | None:
    """Return the permutation of a Transpose."""
    return None if node is None or "perm" not in node.attributes else tuple(node.attributes["perm"].as_ints())
