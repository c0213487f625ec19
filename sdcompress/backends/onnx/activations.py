"""QuantizeLinear and DequantizeLinear around operators with quantized weights, so that runtimes compute them in 8 bits.

Activations are unsigned with a zero point: on x86, ONNX Runtime's integer kernels multiply unsigned activations by
signed weights (VNNI's vpdpbusd, AVX2's vpmaddubsw); signed activations are four times slower there. A convolution's
output is quantized too, since the integer kernel writes 8 bits. A linear layer's is not: its sums become float at once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sdcompress.backends.onnx.passes.graph_edits import constant, copy_type, insert, replace_output, replace_value
from sdcompress.quant.activations import ActivationRange, LayerRanges

LEVELS = 256
_TO_THE_END = 2**31 - 1


def scale_of(activations: ActivationRange) -> np.float32:
    """Return the step between neighbours of the range's 256 codes."""
    return np.float32(activations.scale_and_zero_point(LEVELS)[0])


def quantize_matmul(graph: ir.Graph, node: ir.Node, ranges: LayerRanges) -> None:
    """Quantize the input of a MatMul. With a range for the first token, that token's row gets a MatMul of its own.

    The activations of the start-of-text token are tens of times larger than the others' (MixDQ, arXiv:2405.17873,
    section 3.2); in one range, few codes would be left for the others. Both products share the weight.
    """
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None
    if ranges.first_token is None:
        node.replace_input_with(0, _quantized(graph, x, ranges.input))
        return
    axis = constant(graph, "index_1", np.array([1], dtype=np.int64))
    rows = []
    for (start, end), activations in (((0, 1), ranges.first_token), ((1, _TO_THE_END), ranges.input)):
        bounds = (constant(graph, f"index_{bound}", np.array([bound], dtype=np.int64)) for bound in (start, end))
        part = _shared(graph, x, "Slice", (*bounds, axis))
        part.type = ir.TensorType(ir.DataType.FLOAT)
        rows.append(insert(graph, node, "MatMul", [_quantized(graph, part, activations), node.inputs[1]]))
    replace_value(graph, output, insert(graph, node, "Concat", rows, {"axis": 1}, like=output))


def quantize_convolution(graph: ir.Graph, node: ir.Node, ranges: LayerRanges) -> None:
    """Quantize the input and the output of a Conv."""
    x, output = node.inputs[0], node.outputs[0]
    assert x is not None and ranges.output is not None
    node.replace_input_with(0, _quantized(graph, x, ranges.input))
    users = [(use.node, use.idx) for use in output.uses()]
    result = _quantized(graph, output, ranges.output)
    for user, index in users:
        user.replace_input_with(index, result)
    if output.is_graph_output():
        replace_output(graph, output, result)


def _quantized(graph: ir.Graph, x: ir.Value, activations: ActivationRange) -> ir.Value:
    """Return x rounded to the range's codes. All users of x in this range share one pair of nodes behind x."""
    constants = _constants(graph, activations)
    codes = _shared(graph, x, "QuantizeLinear", constants)
    codes.shape, codes.type = x.shape, ir.TensorType(ir.DataType.UINT8)
    result = _shared(graph, codes, "DequantizeLinear", constants)
    copy_type(result, x)
    return result


def _shared(graph: ir.Graph, x: ir.Value, op: str, others: tuple[ir.Value, ...]) -> ir.Value:
    """Return the output of `op` on x and the others. There is one such node, right behind x."""
    for use in x.uses():
        if use.node.op_type == op and tuple(use.node.inputs) == (x, *others):
            return use.node.outputs[0]
    node = ir.node(op, [x, *others])
    producer = x.producer()
    if producer is not None:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(graph[0], node)
    return node.outputs[0]


def _constants(graph: ir.Graph, activations: ActivationRange) -> tuple[ir.Value, ir.Value]:
    scale, zero_point = activations.scale_and_zero_point(LEVELS)
    step = np.float32(scale)
    return (
        constant(graph, f"scale_{step.view(np.uint32):08x}", np.array(step, dtype=np.float32)),
        constant(graph, f"zero_point_{zero_point}", np.array(zero_point, dtype=np.uint8)),
    )
