"""Parameters as a graph stores them: plain tensors, or codes and scales with the nodes that dequantize them.

8 bits: a DequantizeLinear per output channel (axis 0 of a convolution's weight, axis 1 of a linear layer's, which is
transposed). 4 bits: a blocked DequantizeLinear (opset 21), or for linear layers ONNX Runtime's MatMulNBits, if its own
operators are allowed. An embedding's rows are looked up as codes and scaled afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from sdcompress.backends.onnx.activations import quantize_convolution, quantize_matmul, scale_of
from sdcompress.backends.onnx.cleanup import parameters_of
from sdcompress.backends.onnx.passes.graph_edits import CONTRIB, constant, insert, replace_value
from sdcompress.backends.onnx.weights import WeightView, view_of
from sdcompress.errors import InternalError, UserError

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.activations import LayerRanges
    from sdcompress.quant.format import QuantFormat
    from sdcompress.sources.spec import ComponentSpec

IR_DTYPE = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "I8": ir.DataType.INT8}
# 4: MatMulNBits rounds activations to int8 block by block, and sums up in int32.
NBITS_ACCURACY_LEVEL = 4


@dataclass(frozen=True)
class Packager:
    """Gives the parameters of one graph their values.

    Args:
        spec: the component before the export, with `codes` and `scale` of quantized layers.
        formats: layer -> format, for the quantized layers.
        ranges: layer -> ranges, for the layers whose activations are quantized.
        read: returns a tensor of the component by name; called when the file is written.
        compute: the type that the graph computes in.
        contrib: whether ONNX Runtime's own operators may be used.
        parameters: filled by `package`: initializer -> the number of model parameters that it stands for.
    """

    model: ir.Model
    spec: ComponentSpec
    formats: Mapping[str, QuantFormat]
    ranges: Mapping[str, LayerRanges]
    read: Callable[[str], torch.Tensor]
    compute: ir.DataType
    contrib: bool
    parameters: dict[str, int]

    def package(self) -> None:
        """Give each parameter its value or its dequantization. InternalError for one that the component lacks."""
        for name, value in parameters_of(self.model).items():
            view = view_of(value)
            assert view is not None
            layer = view.tensor.removesuffix(".weight")
            if view.tensor.endswith(".weight") and layer in self.formats:
                for use in list(value.uses()):
                    self._dequantize(use.node, use.idx, value, view, layer)
                del self.model.graph.initializers[name]
            else:
                self._plain(value, view)

    def _plain(self, value: ir.Value, view: WeightView) -> None:
        spec = self.spec.tensors.get(view.tensor)
        if spec is None:
            raise InternalError(
                f"{self.spec.name}.{view.tensor}: is a parameter of the graph, but no tensor of the component"
            )
        assert value.shape is not None and value.name is not None
        dtype = IR_DTYPE[spec.dtype]
        value.const_value = _lazy(value.name, lambda: view.of(self.read(view.tensor)), dtype, value.shape)
        value.type = ir.TensorType(dtype)
        self.parameters[value.name] = math.prod(value.shape.numpy())

    def _dequantize(self, node: ir.Node, index: int, value: ir.Value, view: WeightView, layer: str) -> None:
        """Replace the weight `value`, input `index` of `node`, by codes and the nodes that dequantize them."""
        fmt = self.formats[layer]
        if node.op_type == "Gather":
            self._look_up(node, view, layer)
        elif self.contrib and fmt.bits == 4 and node.op_type == "MatMul" and index == 1:
            self._matmul_nbits(node, value, view, layer, fmt)
        elif node.op_type in ("Conv", "MatMul") and index == 1:
            node.replace_input_with(index, self._dequantized(node, value, view, layer))
            if layer in self.ranges:
                self._quantize_activations(node, layer)
        else:
            raise InternalError(f"{self.spec.name}.{layer}: a quantized weight is used by {node.op_type}")

    def _quantize_activations(self, node: ir.Node, layer: str) -> None:
        """Quantize the activations of a node whose weight is dequantized already."""
        graph, ranges = self.model.graph, self.ranges[layer]
        if node.op_type == "MatMul":
            quantize_matmul(graph, node, ranges)
            return
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            node.replace_input_with(2, self._integer_bias(node, bias, layer))
        quantize_convolution(graph, node, ranges)

    def _integer_bias(self, node: ir.Node, bias: ir.Value, layer: str) -> ir.Value:
        """Return the bias as int32 in steps of input scale x weight scale, the unit of an integer sum."""
        input_scale = float(scale_of(self.ranges[layer].input))

        def steps() -> torch.Tensor:
            return self.read(f"{layer}.scale").double() * input_scale

        def codes() -> torch.Tensor:
            rounded = (self.read(f"{layer}.bias").double() / steps()).round()
            if not bool((rounded.abs() < 2**31).all()):
                raise UserError(
                    f"{self.spec.name}.{layer}: its bias is too large in proportion to its weights for 8-bit "
                    f"activations; exclude the layer from them (activations_exclude)"
                )
            return rounded

        assert bias.shape is not None
        values = self._computed(f"{layer}.bias_codes", codes, ir.DataType.INT32, bias.shape, parameters=bias.shape)
        scale = self._computed(f"{layer}.bias_scale", steps, ir.DataType.FLOAT, bias.shape)
        return insert(self.model.graph, node, "DequantizeLinear", [values, scale], {"axis": 0}, like=bias)

    def _dequantized(self, node: ir.Node, value: ir.Value, view: WeightView, layer: str) -> ir.Value:
        """Return the weight as a DequantizeLinear of its codes, in front of `node`."""
        fmt = self.formats[layer]
        blocks = self.spec.tensors[f"{layer}.scale"].shape[1:]
        if len(blocks) == 1 and value.shape is not None and len(value.shape) > 2:
            return self._dequantized_flat(node, value, view, layer)
        codes, scale = self._codes(view, layer), self._scale(node, view, layer)
        attributes = {"axis": 1 if view.transposed else 0}
        if blocks:
            attributes = {"axis": 0 if view.transposed else 1, "block_size": _block_size(fmt, self.spec, layer)}
        return insert(self.model.graph, node, "DequantizeLinear", [codes, scale], attributes, like=value)

    def _dequantized_flat(self, node: ir.Node, value: ir.Value, view: WeightView, layer: str) -> ir.Value:
        """Return a convolution's weight whose groups span all kernel positions: [out, in*kh*kw] in blocks, reshaped."""
        graph = self.model.graph
        assert value.shape is not None
        out_channels, *rest = (int(size) for size in value.shape.numpy())
        codes = self._initializer(
            f"{layer}.codes{_rows(view)}",
            f"{layer}.codes",
            view,
            ir.DataType.INT8,
            shape=(out_channels, math.prod(rest)),
            change=lambda tensor: tensor.flatten(1),
            parameters=True,
        )
        block = math.prod(rest) // self.spec.tensors[f"{layer}.scale"].shape[1]
        attributes = {"axis": 1, "block_size": block}
        flat = insert(graph, node, "DequantizeLinear", [codes, self._scale(node, view, layer)], attributes)
        sizes = constant(graph, f"shape_{out_channels}_{'_'.join(map(str, rest))}", np.array([out_channels, *rest]))
        return insert(graph, node, "Reshape", [flat, sizes], like=value)

    def _codes(self, view: WeightView, layer: str) -> ir.Value:
        """Return the initializer of the layer's codes in the layout of the weight's view."""
        spec = self.spec.tensors[f"{layer}.codes"]
        dtype = {"I8": ir.DataType.INT8, "I4": ir.DataType.INT4}[spec.dtype]
        name = f"{layer}.codes{_rows(view)}"
        return self._initializer(name, f"{layer}.codes", view, dtype, parameters=True)

    def _scale(self, node: ir.Node, view: WeightView, layer: str) -> ir.Value:
        """Return the layer's scales in the type of the computation: [out], or [out, blocks, ...] in the view's layout.

        Scales of blocks are stored in float16 and cast; ONNX Runtime folds the cast when a session opens.
        """
        spec = self.spec.tensors[f"{layer}.scale"]
        name, compute = f"{layer}.scale{_rows(view)}", self.compute
        if spec.shape[1:] == ():
            flat = WeightView(view.tensor, view.rows)
            return self._initializer(name, f"{layer}.scale", flat, compute)
        stored = self._initializer(name, f"{layer}.scale", view, ir.DataType.FLOAT16)
        if compute == ir.DataType.FLOAT16:
            return stored
        cast = insert(self.model.graph, node, "Cast", [stored], {"to": compute})
        cast.shape, cast.type = stored.shape, ir.TensorType(compute)
        return cast

    def _look_up(self, node: ir.Node, view: WeightView, layer: str) -> None:
        """Replace the Gather of an embedding's rows by Cast(Gather(codes)) * Unsqueeze(Gather(scale))."""
        graph, indices, output = self.model.graph, node.inputs[1], node.outputs[0]
        codes = insert(graph, node, "Gather", [self._codes(view, layer), indices], {"axis": 0})
        values = insert(graph, node, "Cast", [codes], {"to": self.compute}, like=output)
        scales = insert(graph, node, "Gather", [self._scale(node, view, layer), indices], {"axis": 0})
        last = constant(graph, "last_axis", np.array([-1], dtype=np.int64))
        scales = insert(graph, node, "Unsqueeze", [scales, last])
        replace_value(graph, output, insert(graph, node, "Mul", [values, scales], like=output))

    def _matmul_nbits(self, node: ir.Node, value: ir.Value, view: WeightView, layer: str, fmt: QuantFormat) -> None:
        """Write MatMulNBits: codes as nibbles [out, blocks, block / 2] with 8 for zero, scales [out, blocks]."""
        assert value.shape is not None
        in_features, out_features = int(value.shape[0]), int(value.shape[1])  # type: ignore[arg-type]
        block = _block_size(fmt, self.spec, layer)
        plain = replace(view, transposed=False)
        shape = (out_features, in_features // block, block // 2)
        codes = self._initializer(
            f"{layer}.codes{_rows(view)}", f"{layer}.codes", plain, ir.DataType.UINT8, shape=shape,
            change=partial(_nibbles, block=block), parameters=True,
        )  # fmt: skip
        scale = self._scale(node, plain, layer)
        attributes = {
            "K": in_features, "N": out_features, "bits": 4, "block_size": block, "accuracy_level": NBITS_ACCURACY_LEVEL
        }  # fmt: skip
        graph, output = self.model.graph, node.outputs[0]
        result = insert(
            graph, node, "MatMulNBits", [node.inputs[0], codes, scale], attributes, domain=CONTRIB, like=output
        )
        self.model.opset_imports.setdefault(CONTRIB, 1)
        replace_value(graph, output, result)

    def _initializer(
        self,
        name: str,
        tensor: str,
        view: WeightView,
        dtype: ir.DataType,
        *,
        shape: tuple[int, ...] | None = None,
        change: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
        parameters: bool = False,
    ) -> ir.Value:
        """Return the initializer `name` for a view of a tensor.

        Args:
            shape: the shape that `change` gives; None for the view's.
            parameters: whether it stands for model parameters.
        """
        viewed = view_shape(view, self.spec.tensors[tensor].shape)
        sizes = ir.Shape(viewed if shape is None else shape)
        count = ir.Shape(viewed) if parameters else None
        return self._computed(name, lambda: change(view.of(self.read(tensor))), dtype, sizes, parameters=count)

    def _computed(
        self,
        name: str,
        make: Callable[[], torch.Tensor],
        dtype: ir.DataType,
        shape: ir.Shape,
        *,
        parameters: ir.Shape | None = None,
    ) -> ir.Value:
        """Return the initializer `name`, whose values are computed when the file is written."""
        graph = self.model.graph
        if name in graph.initializers:
            return graph.initializers[name]
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
        value.const_value = _lazy(name, make, dtype, shape)
        graph.initializers.add(value)
        self.parameters[name] = 0 if parameters is None else math.prod(parameters.numpy())
        return value


def _lazy(name: str, make: Callable[[], torch.Tensor], dtype: ir.DataType, shape: ir.Shape) -> ir.LazyTensor:
    def evaluate() -> ir.TensorProtocol:
        array = make().contiguous().numpy()
        if dtype != ir.DataType.INT4:  # whose codes are int8 here; onnx_ir packs them
            array = array.astype(dtype.numpy(), copy=False)
        return ir.Tensor(array, dtype=dtype, shape=shape, name=name)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=shape, name=name)


def view_shape(view: WeightView, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the view of a tensor that has this shape in the component's file."""
    rows = shape[0] if view.rows is None else view.rows[1] - view.rows[0]
    rest = shape[1:2] if view.matrix else shape[1:]
    return (*rest, rows) if view.transposed else (rows, *rest)


def _rows(view: WeightView) -> str:
    return "" if view.rows is None else f"[{view.rows[0]}:{view.rows[1]}]"


def _block_size(fmt: QuantFormat, spec: ComponentSpec, layer: str) -> int:
    return spec.tensors[f"{layer}.codes"].shape[1] // spec.tensors[f"{layer}.scale"].shape[1]


def _nibbles(codes: torch.Tensor, block: int) -> torch.Tensor:
    """Return codes [out, in] of -8 to 7 as bytes [out, in / block, block / 2], plus 8, the first in the lower half."""
    import torch

    shifted = (codes + 8).to(torch.uint8).reshape(codes.shape[0], -1, block // 2, 2)
    return shifted[..., 0] | (shifted[..., 1] << 4)
