"""Changing a graph: nodes put in, values taken over, constants, and looking at what stands before a value."""

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
    """The only output of a new node put in front of `before`; type and shape are taken from `like`."""
    node = ir.node(op, inputs, attributes, domain=domain)
    graph.insert_before(before, node)
    output = node.outputs[0]
    if like is not None:
        describe_as(output, like)
    return output


def describe_as(value: ir.Value, like: ir.Value) -> None:
    """Gives `value` the shape and a type of its own (values may change theirs) like the other's."""
    value.shape = like.shape
    value.type = None if like.dtype is None else ir.TensorType(like.dtype)


def take_over(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Lets `new` stand wherever `old` stood, outputs of the graph included, and removes what only `old` needed."""
    if old.is_graph_output():
        put_out(graph, old, new)
    ir.convenience.replace_all_uses_with(old, new)
    remove_unused(graph, old.producer())


def put_out(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Makes `new` the output of the graph that `old` was, under its name."""
    for index, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[index] = new
    old.name, new.name = new.name, old.name


def remove_unused(graph: ir.Graph, node: ir.Node | None) -> None:
    """Removes the node if nothing uses it, and then those before it likewise."""
    if node is None or node.graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
        return
    before = [value.producer() for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for each in before:
        remove_unused(graph, each)


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """The initializer `name` with these values, made when it is not there yet."""
    there = graph.initializers.get(name)
    if there is not None:
        return there
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    graph.initializers.add(value)
    return value


def producer(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node that makes `value` if it is an `op` of the standard domain, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op and node.domain in ("", "ai.onnx") else None


def sole_user(value: ir.Value, op: str) -> ir.Node | None:
    """The one node that uses `value` if it is an `op` and the graph does not put the value out, else None."""
    users = value.consumers() if hasattr(value, "consumers") else tuple(use.node for use in value.uses())
    if len(users) != 1 or value.is_graph_output() or users[0].op_type != op:
        return None
    return users[0]


def nodes_of(graph: ir.Graph, *ops: str) -> list[ir.Node]:
    """The graph's nodes of these standard operators, in order."""
    return [node for node in graph if node.op_type in ops and node.domain in ("", "ai.onnx")]


def permutation(node: ir.Node | None) -> tuple[int, ...] | None:
    """A Transpose's permutation."""
    return None if node is None or "perm" not in node.attributes else tuple(node.attributes["perm"].as_ints())
