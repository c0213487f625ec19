"""projection to tokens: write the 1x1 convolutions around attention blocks as linear layers on the tokens.

Stable Diffusion 1.x projects [batch, channels, height, width] with a 1x1 convolution and then makes the pixels tokens
[batch, height*width, channels]. If the transpose comes first, the convolution is a MatMul over the same numbers. The
number of transposes stays, and in 8 bits a MatMul needs no range for its output, but a convolution does.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from sdcompress.backends.onnx.passes.graph_edits import (
    copy_type,
    insert,
    nodes_of,
    only_user,
    permutation,
    producer,
    replace_value,
)
from sdcompress.backends.onnx.weights import set_view, view_of

TO_TOKENS = (0, 2, 3, 1)
FROM_TOKENS = (0, 3, 1, 2)


def apply(model: ir.Model) -> tuple[int, int]:
    """Rewrite the graph. Candidates are 1x1 convolutions whose input is from tokens or whose output goes to them."""
    candidates = matched = 0
    for conv in nodes_of(model.graph, "Conv"):
        if not _is_pointwise(conv):
            continue
        after, before = only_user(conv.outputs[0], "Transpose"), producer(conv.inputs[0], "Transpose")
        if after is not None and permutation(after) == TO_TOKENS:
            candidates += 1
            matched += _transpose_before(model.graph, conv, after)
        elif before is not None and permutation(before) == FROM_TOKENS:
            candidates += 1
            matched += _transpose_after(model.graph, conv, before)
    return candidates, matched


def _transpose_before(graph: ir.Graph, conv: ir.Node, transpose: ir.Node) -> bool:
    """Replace Conv, Transpose by Transpose, MatMul, Add."""
    x, weight = conv.inputs[0], _as_matrix(conv.inputs[1])
    if weight is None:
        return False
    tokens = insert(graph, conv, "Transpose", [x], {"perm": TO_TOKENS})
    assert x is not None and x.shape is not None
    copy_type(tokens, x)
    tokens.shape = ir.Shape([x.shape[axis] for axis in TO_TOKENS])
    result = transpose.outputs[0]
    replace_value(graph, result, _linear(graph, conv, tokens, weight, result.shape))
    return True


def _transpose_after(graph: ir.Graph, conv: ir.Node, transpose: ir.Node) -> bool:
    """Replace Transpose, Conv by MatMul, Add, Transpose."""
    weight = _as_matrix(conv.inputs[1])
    if weight is None:
        return False
    tokens = transpose.inputs[0]
    assert tokens is not None
    shape = conv.outputs[0].shape
    projected = _linear(
        graph, conv, tokens, weight, None if shape is None else ir.Shape([shape[axis] for axis in TO_TOKENS])
    )
    result = insert(graph, conv, "Transpose", [projected], {"perm": FROM_TOKENS}, like=conv.outputs[0])
    replace_value(graph, conv.outputs[0], result)
    return True


def _linear(graph: ir.Graph, conv: ir.Node, tokens: ir.Value, weight: ir.Value, shape: ir.Shape | None) -> ir.Value:
    result = insert(graph, conv, "MatMul", [tokens, weight], like=tokens)
    result.shape = shape
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    return result if bias is None else insert(graph, conv, "Add", [result, bias], like=result)


def _as_matrix(weight: ir.Value | None) -> ir.Value | None:
    """Return the 1x1 convolution's weight as [in, out]; None if it is no parameter or has other users."""
    view = None if weight is None else view_of(weight)
    if weight is None or view is None or len(weight.uses()) != 1:
        return None
    assert weight.shape is not None
    out_channels, in_channels = int(weight.shape[0]), int(weight.shape[1])  # type: ignore[arg-type]
    set_view(weight, replace(view, matrix=True, transposed=True), (in_channels, out_channels))
    return weight


def _is_pointwise(conv: ir.Node) -> bool:
    attributes = conv.attributes
    ones = all(set(attributes[name].as_ints()) == {1} for name in ("kernel_shape", "strides", "dilations")
               if name in attributes)  # fmt: skip
    padded = "pads" in attributes and any(attributes["pads"].as_ints())
    return ones and "kernel_shape" in attributes and not padded and attributes.get_int("group", 1) == 1
