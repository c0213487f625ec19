"""Packaged weights are exactly those of QuantizedTensor.dequantize; quantized activations are a slow reference's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from small_graphs import TOLERANCE, build, operators, random, run, run_openvino

ir = pytest.importorskip("onnx_ir", reason="onnx_ir is not installed (pip install 'sdcompress[onnx]')")

from sdcompress.backends.onnx import packaging  # noqa: E402
from sdcompress.backends.onnx.export import clean_up_after, save  # noqa: E402
from sdcompress.backends.onnx.packaging import Packager  # noqa: E402
from sdcompress.backends.onnx.passes import geglu, linear, projection  # noqa: E402
from sdcompress.backends.torch.packaging import package, package_specs  # noqa: E402
from sdcompress.errors import InternalError, UserError  # noqa: E402
from sdcompress.quant.activations import ActivationRange, LayerRanges  # noqa: E402
from sdcompress.quant.format import QuantFormat, QuantizedTensor  # noqa: E402
from sdcompress.quant.registry import from_label  # noqa: E402
from sdcompress.sources.spec import ComponentSpec, parameter  # noqa: E402

INT8, GROUPED, INT4 = from_label("int8"), from_label("int8/16"), from_label("int4")
CONV = """g (float[n, 64, h, v] x, float[12, 64, 3, 3] conv.weight, float[12] conv.bias) => (float[n, 12, p, q] y) {
        y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, conv.weight, conv.bias)
    }"""
LINEAR = """g (float[n, s, 64] x, float[24, 64] linear.weight) => (float[n, s, 24] y) {
        t = Transpose<perm = [1, 0]>(linear.weight)
        y = MatMul(x, t)
    }"""
LINEAR_SHAPES = {"linear.weight": (24, 64)}


def layers_on_one_input(names: str) -> str:
    """The graph of linear layers [64 -> 24], named by one letter each, on the same input."""
    weights = "".join(f", float[24, 64] {name}.weight" for name in names)
    outputs = ", ".join(f"float[n, s, 24] y{name}" for name in names)
    nodes = "\n".join(
        f"t{name} = Transpose<perm = [1, 0]>({name}.weight)\n y{name} = MatMul(x, t{name})" for name in names
    )
    return f"g (float[n, s, 64] x{weights}) => ({outputs}) {{ {nodes} }}"


CONV_SHAPES = {"conv.weight": (12, 64, 3, 3), "conv.bias": (12,)}


@dataclass
class Packaged:
    """A small graph whose layers have been quantized, and what they were quantized to."""

    model: ir.Model
    spec: ComponentSpec
    tensors: dict[str, torch.Tensor]
    quantized: dict[str, QuantizedTensor]
    counts: dict[str, int] = field(default_factory=dict)

    def weight(self, layer: str) -> torch.Tensor:
        """The layer's weight as its codes give it back, in float32."""
        return self.quantized[layer].dequantize(torch.float32)

    def of(self, op: str) -> list[ir.Node]:
        return [node for node in self.model.graph if node.op_type == op]


def quantized_model(
    text: str,
    shapes: Mapping[str, tuple[int, ...]],
    formats: Mapping[str, QuantFormat],
    *,
    ranges: Mapping[str, LayerRanges] | None = None,
    contrib: bool = False,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Packaged:
    """The graph with random weights (or `weights`) after the passes for linear layers, packaged in these formats."""
    plain = {name: random(*shape, seed=index) for index, (name, shape) in enumerate(shapes.items())}
    plain |= dict(weights or {})
    model = build(text, plain)
    for each in (linear, projection, geglu):
        each.apply(model)
    unpacked = ComponentSpec("part", "diffusers", "Part", {}, {n: parameter(tuple(w.shape), "F32")
                                                               for n, w in plain.items()})  # fmt: skip
    quantized = {layer: fmt.quantize(plain[f"{layer}.weight"]) for layer, fmt in formats.items()}
    stored = {name: tensor for name, tensor in plain.items() if name.removesuffix(".weight") not in formats}
    for layer, tensor in quantized.items():
        stored |= package(tensor, layer, unpacked.tensors[f"{layer}.weight"], stock=False, target="onnx")
    result = Packaged(model, package_specs(unpacked, formats, "onnx"), stored, quantized)
    packager = Packager(
        model, result.spec, formats, ranges or {}, stored.__getitem__, ir.DataType.FLOAT, contrib, result.counts
    )
    packager.package()
    clean_up_after(model)
    return result


def initializer(packaged: Packaged, name: str) -> np.ndarray:
    return np.asarray(packaged.model.graph.initializers[name].const_value.numpy())


@pytest.mark.parametrize("fmt", [INT8, GROUPED, INT4], ids=lambda fmt: fmt.label)
def test_convolution(fmt: QuantFormat) -> None:
    packaged = quantized_model(CONV, CONV_SHAPES, {"conv": fmt})
    (convolution,) = packaged.of("Conv")
    x = random(1, 64, 4, 5, seed=5)
    y, weight = run(packaged.model, {"x": x}, watch=convolution.inputs[1:2], optimize=False)
    np.testing.assert_array_equal(weight, packaged.weight("conv"))
    bias = packaged.tensors["conv.bias"]
    expected = torch.nn.functional.conv2d(x, packaged.weight("conv"), bias, padding=1)
    # 576 products of values around 1 and weights around 1: sums up to 100.
    np.testing.assert_allclose(y, expected, atol=100 * TOLERANCE)
    codes = {name: count for name, count in packaged.counts.items() if count}
    assert codes == {"conv.codes": 12 * 64 * 9, "conv.bias": 12} and packaged.counts["conv.scale"] == 0
    stored = packaged.model.graph.initializers["conv.codes"].const_value
    assert stored.nbytes == packaged.spec.tensors["conv.codes"].size_bytes


@pytest.mark.parametrize("fmt", [INT8, GROUPED, INT4], ids=lambda fmt: fmt.label)
def test_linear_layer(fmt: QuantFormat) -> None:
    packaged = quantized_model(LINEAR, LINEAR_SHAPES, {"linear": fmt})
    (dequantize,) = packaged.of("DequantizeLinear")
    x = torch.eye(64)[None]
    y, weight = run(packaged.model, {"x": x}, watch=dequantize.outputs, optimize=False)
    np.testing.assert_array_equal(weight, packaged.weight("linear").T)
    np.testing.assert_array_equal(y[0], packaged.weight("linear").T)  # sums of zeros and one weight are exact
    assert packaged.counts["linear.codes"] == 24 * 64


def test_float32_scales_of_blocks_are_stored_in_half_precision() -> None:
    packaged = quantized_model(LINEAR, LINEAR_SHAPES, {"linear": INT4})
    assert initializer(packaged, "linear.scale").dtype == np.float16
    per_channel = quantized_model(LINEAR, LINEAR_SHAPES, {"linear": INT8})
    assert initializer(per_channel, "linear.scale").dtype == np.float32


def check_weight(y: np.ndarray, layer: str, packaged: Packaged, contrib: bool) -> None:
    """y [in, out], which the graph made of the identity, is the layer's weight."""
    weight = packaged.weight(layer).flatten(1).T
    if contrib and packaged.quantized[layer].format.bits == 4:
        # The kernel adds up x s (q + 8) and takes 8 s x off: a few units in the last place of at most 15 s.
        largest = 15 * float(packaged.quantized[layer].scale.max())
        np.testing.assert_allclose(y, weight, rtol=0, atol=4 * largest * 2**-24)
    else:
        # Sums of zeros and one weight are exact, unless ONNX Runtime is let to make a MatMulNBits of it.
        np.testing.assert_array_equal(y, weight)


def test_matmul_nbits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nibbles are those of ONNX Runtime's definition; with float32 activations (level 1) it gives the weight."""
    monkeypatch.setattr(packaging, "NBITS_ACCURACY_LEVEL", 1)
    packaged = quantized_model(LINEAR, LINEAR_SHAPES, {"linear": INT4}, contrib=True)
    assert operators(packaged.model)["MatMulNBits"] == 1 and not packaged.of("DequantizeLinear")
    (y,) = run(packaged.model, {"x": torch.eye(64)[None]})
    check_weight(y[0], "linear", packaged, contrib=True)
    assert packaged.model.graph.outputs[0].name == "y"
    stored = packaged.model.graph.initializers["linear.codes"].const_value
    assert stored.nbytes == packaged.spec.tensors["linear.codes"].size_bytes
    assert packaged.counts == {"linear.codes": 24 * 64, "linear.scale": 0}
    codes, scale = stored.numpy(), packaged.quantized["linear"].scale  # [24, 2, 16], [24, 2]
    for out in range(24):
        for channel in range(64):
            byte = int(codes[out, channel // 32, channel % 32 // 2])
            code = (byte >> 4 if channel % 2 else byte & 15) - 8
            assert np.float32(code) * np.float32(scale[out, channel // 32]) == packaged.weight("linear")[out, channel]


def test_matmul_nbits_with_rounded_activations() -> None:
    """As it is packaged: activations in 8 bits per block of 32, |error| <= step / 2 for each of them."""
    packaged = quantized_model(LINEAR, LINEAR_SHAPES, {"linear": INT4}, contrib=True)
    x = random(1, 7, 64, seed=3)
    (y,) = run(packaged.model, {"x": x})
    weight = packaged.weight("linear")
    half_steps = x.abs().unflatten(2, (2, 32)).amax(3, keepdim=True).expand(-1, -1, -1, 32).flatten(2) / 127 / 2
    bound = half_steps @ weight.abs().T + 100 * TOLERANCE
    difference = (torch.from_numpy(y) - x @ weight.T).abs()
    assert bool((difference <= bound).all()) and float(difference.max()) > 0


@pytest.mark.parametrize("contrib", [True, False])
@pytest.mark.parametrize("fmt", [INT8, INT4], ids=lambda fmt: fmt.label)
def test_halves_of_a_weight(fmt: QuantFormat, contrib: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `geglu` a weight is in the graph in two pieces, each with its own scales."""
    monkeypatch.setattr(packaging, "NBITS_ACCURACY_LEVEL", 1)
    packaged = quantized_model(
        """g (float[n, s, 64] x, float[32, 64] ff.weight, float[32] ff.bias) =>
            (float[n, s, 16] a, float[n, s, 16] b) {
            t = Transpose<perm = [1, 0]>(ff.weight)
            m = MatMul(x, t)
            h = Add(m, ff.bias)
            a, b = Split<axis = -1, num_outputs = 2>(h)
        }""",
        {"ff.weight": (32, 64), "ff.bias": (32,)},
        {"ff": fmt},
        contrib=contrib,
        weights={"ff.bias": torch.zeros(32)},
    )
    assert {name for name, count in packaged.counts.items() if count} == {
        "ff.codes[0:16]", "ff.codes[16:32]", "ff.bias[0:16]", "ff.bias[16:32]"
    }  # fmt: skip
    assert sum(packaged.counts.values()) == 32 * 64 + 32
    outputs = run(packaged.model, {"x": torch.eye(64)[None]}, optimize=False)
    check_weight(np.concatenate(outputs, axis=2)[0], "ff", packaged, contrib)


@pytest.mark.parametrize("contrib", [True, False])
@pytest.mark.parametrize("fmt", [INT8, INT4], ids=lambda fmt: fmt.label)
def test_pointwise_convolution_as_linear_layer(
    fmt: QuantFormat, contrib: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaging, "NBITS_ACCURACY_LEVEL", 1)
    packaged = quantized_model(
        """g (float[n, 64, h, v] x, float[12, 64, 1, 1] proj.weight) => (float[n, h, v, 12] y) {
            c = Conv<kernel_shape = [1, 1]>(x, proj.weight)
            y = Transpose<perm = [0, 2, 3, 1]>(c)
        }""",
        {"proj.weight": (12, 64, 1, 1)},
        {"proj": fmt},
        contrib=contrib,
    )
    (y,) = run(packaged.model, {"x": torch.eye(64)[None, :, :, None]}, optimize=False)
    check_weight(y[0, :, 0], "proj", packaged, contrib)
    assert packaged.counts["proj.codes"] == 12 * 64


def test_embedding_is_looked_up_as_codes() -> None:
    packaged = quantized_model(
        """g (int64[n, s] i, float[9, 64] table.weight) => (float[n, s, 64] y) {
            y = Gather<axis = 0>(table.weight, i)
        }""",
        {"table.weight": (9, 64)},
        {"table": INT8},
    )
    indices = np.array([[0, 8, 3], [1, 1, 7]])
    (y,) = run(packaged.model, {"i": indices})
    np.testing.assert_array_equal(y, packaged.weight("table")[torch.from_numpy(indices)])
    assert initializer(packaged, "table.codes").dtype == np.int8 and packaged.model.graph.outputs[0].name == "y"


def test_weight_used_by_something_else_is_an_error() -> None:
    with pytest.raises(InternalError, match=r"part\.linear: a quantized weight is used by Relu"):
        quantized_model(
            "g (float[8, 64] linear.weight) => (float[8, 64] y) { y = Relu(linear.weight) }",
            {"linear.weight": (8, 64)},
            {"linear": INT8},
        )


def test_parameter_that_the_component_lacks_is_an_error() -> None:
    model = build("g (float[n, 8] x, float[8] w) => (float[n, 8] y) { y = Add(x, w) }", {"w": random(8)})
    spec = ComponentSpec("part", "diffusers", "Part", {}, {})
    with pytest.raises(InternalError, match=r"part\.w: is a parameter of the graph, but no tensor of the component"):
        Packager(model, spec, {}, {}, {}.__getitem__, ir.DataType.FLOAT, False, {}).package()


# Activations. On x86 without VNNI the kernels add pairs of products of unsigned and signed bytes in 16 bits, where they
# saturate: but for the last test, codes of activations stay below 2^15 / (2 * 127) = 129 here, which the ranges' upper
# ends leave room for.
RANGE = ActivationRange(-0.5, 1.5)  # zero is code 64


def small(*shape: int, seed: int = 7) -> torch.Tensor:
    """Values whose codes in RANGE are 0 to 121; some lie below the range and are clipped."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.55).clamp(max=0.45)


def rounded(x: torch.Tensor, activations: ActivationRange) -> torch.Tensor:
    """x as its codes give it back: value by value, in Python's own arithmetic on float32's values."""
    width = max(activations.high, 0.0) - min(activations.low, 0.0)
    scale = float(np.float32(width / 255))
    zero_point = round(-min(activations.low, 0.0) / scale)

    def back(value: float) -> float:
        # float32's quotient, as QuantizeLinear's: in float64 a value on an edge could round to the other side
        code = round(float(np.float32(value) / np.float32(scale))) + zero_point
        return (min(max(code, 0), 255) - zero_point) * scale

    return torch.tensor([back(value) for value in x.flatten().tolist()], dtype=torch.float64).reshape(x.shape)


def products_of(packaged: Packaged, layer: str, x: torch.Tensor) -> torch.Tensor:
    """The layer's sums in float64 for `x`, an input in RANGE; the bias in steps of input scale x weight scale."""
    weight = packaged.weight(layer).double()
    if weight.dim() == 2:
        return x @ weight.T
    steps = packaged.quantized[layer].scale.double() * float(np.float32(2.0 / 255))
    bias = (packaged.tensors[f"{layer}.bias"].double() / steps).round() * steps
    # Padding is the code of zero, which stands for it exactly.
    return torch.nn.functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def check_codes(y: np.ndarray, sums: torch.Tensor, output: ActivationRange) -> None:
    """y is `sums` rounded to the codes of `output`; a sum on the edge between two codes may go either way."""
    step = (output.high - output.low) / 255
    edge = ((sums / step) % 1 - 0.5).abs() < 1e-4
    assert float(edge.double().mean()) < 0.01
    expected = rounded(sums.float(), output)
    np.testing.assert_allclose(y[~edge.numpy()], expected[~edge], rtol=2 * 2**-23)  # code x step, both in float32
    np.testing.assert_allclose(y, expected, atol=step * 1.001)


def quantizers(packaged: Packaged) -> list[ir.Node]:
    return packaged.of("QuantizeLinear")


@pytest.mark.parametrize("optimize", [False, True])
def test_linear_layer_with_activations(optimize: bool) -> None:
    ranges = {"linear": LayerRanges(RANGE)}
    packaged = quantized_model(LINEAR, LINEAR_SHAPES, {"linear": INT8}, ranges=ranges)
    assert len(quantizers(packaged)) == 1 and len(packaged.of("DequantizeLinear")) == 2
    x = small(2, 5, 64)
    (y,) = run(packaged.model, {"x": x}, optimize=optimize)
    expected = rounded(x, RANGE) @ packaged.weight("linear").double().T
    np.testing.assert_allclose(y, expected, atol=10 * TOLERANCE)  # 64 products of weights around 1
    assert not np.allclose(y, x @ packaged.weight("linear").T, atol=10 * TOLERANCE)


def test_layers_with_the_same_range_share_its_nodes() -> None:
    other = ActivationRange(-1.0, 3.0)
    ranges = {"a": LayerRanges(RANGE), "b": LayerRanges(RANGE), "c": LayerRanges(other)}
    shapes = {f"{layer}.weight": (24, 64) for layer in ranges}
    packaged = quantized_model(layers_on_one_input("abc"), shapes, dict.fromkeys(ranges, INT8), ranges=ranges)
    assert len(quantizers(packaged)) == 2 and len(packaged.of("DequantizeLinear")) == 2 + 3
    x = small(1, 5, 64)
    for layer, y in zip(ranges, run(packaged.model, {"x": x}), strict=True):
        expected = rounded(x, ranges[layer].input) @ packaged.weight(layer).double().T
        np.testing.assert_allclose(y, expected, atol=10 * TOLERANCE)


@pytest.mark.parametrize("optimize", [False, True])
def test_first_token_has_a_step_of_its_own(optimize: bool) -> None:
    first = ActivationRange(-25.0, 75.0)
    ranges = {"linear": LayerRanges(RANGE, first_token=first)}
    packaged = quantized_model(LINEAR, LINEAR_SHAPES, {"linear": INT8}, ranges=ranges)
    assert operators(packaged.model) == {
        "Slice": 2, "QuantizeLinear": 2, "DequantizeLinear": 3, "MatMul": 2, "Concat": 1
    }  # fmt: skip
    assert packaged.model.graph.outputs[0].name == "y"
    x = small(2, 5, 64)
    x[:, 0] *= 50
    (y,) = run(packaged.model, {"x": x}, optimize=optimize)
    rows = torch.cat([rounded(x[:, :1], first), rounded(x[:, 1:], RANGE)], dim=1)
    expected = rows @ packaged.weight("linear").double().T
    # The first row's values are 50 times the others'.
    np.testing.assert_allclose(y[:, 1:], expected[:, 1:], atol=10 * TOLERANCE)
    np.testing.assert_allclose(y[:, :1], expected[:, :1], atol=500 * TOLERANCE)
    assert packaged.counts == {"linear.codes": 24 * 64, "linear.scale": 0}  # one weight for both


def test_layers_on_the_same_text_share_its_rows() -> None:
    ranges = dict.fromkeys("kv", LayerRanges(RANGE, first_token=ActivationRange(-25.0, 75.0)))
    shapes = {"k.weight": (24, 64), "v.weight": (24, 64)}
    packaged = quantized_model(layers_on_one_input("kv"), shapes, dict.fromkeys("kv", INT8), ranges=ranges)
    assert operators(packaged.model)["Slice"] == operators(packaged.model)["QuantizeLinear"] == 2
    run(packaged.model, {"x": small(2, 5, 64)})


@pytest.mark.parametrize("optimize", [False, True])
def test_convolution_with_activations(optimize: bool) -> None:
    """Input, bias and output are rounded; the output is the graph's and keeps its name."""
    output = ActivationRange(-4.0, 4.0)
    shapes = {"conv.weight": (12, 64, 3, 3), "conv.bias": (12,)}
    weight = random(12, 64, 3, 3) / 10
    packaged = quantized_model(
        CONV, shapes, {"conv": INT8}, ranges={"conv": LayerRanges(RANGE, output=output)},
        weights={"conv.weight": weight},
    )  # fmt: skip
    assert [value.name for value in packaged.model.graph.outputs] == ["y"]
    assert len(quantizers(packaged)) == 2 and packaged.model.graph.outputs[0].producer().op_type == "DequantizeLinear"
    x = small(1, 64, 4, 5)
    (y,) = run(packaged.model, {"x": x}, optimize=optimize)
    check_codes(y, products_of(packaged, "conv", rounded(x, RANGE)), output)


def test_bias_is_stored_as_integers() -> None:
    ranges = {"conv": LayerRanges(RANGE, output=ActivationRange(-4.0, 4.0))}
    packaged = quantized_model(CONV, CONV_SHAPES, {"conv": INT8}, ranges=ranges)
    codes, scale = initializer(packaged, "conv.bias_codes"), initializer(packaged, "conv.bias_scale")
    assert codes.dtype == np.int32 and scale.dtype == np.float32
    assert packaged.counts["conv.bias_codes"] == 12 and packaged.counts["conv.bias_scale"] == 0
    assert "conv.bias" not in packaged.counts or "conv.bias" not in packaged.model.graph.initializers
    error = np.abs(codes * scale.astype(np.float64) - packaged.tensors["conv.bias"].numpy())
    assert bool((error <= scale / 2 * (1 + 1e-6) + np.abs(packaged.tensors["conv.bias"].numpy()) * 2**-23).all())


def test_bias_too_large_for_its_steps(tmp_path: Path) -> None:
    ranges = {"conv": LayerRanges(ActivationRange(-1e-6, 1e-6), output=ActivationRange(-4.0, 4.0))}
    packaged = quantized_model(
        CONV, CONV_SHAPES, {"conv": INT8}, ranges=ranges, weights={"conv.bias": torch.full((12,), 1e4)}
    )
    with pytest.raises(UserError, match=r"part\.conv: its bias is too large .*activations_exclude"):
        save(packaged.model, tmp_path)


def test_convolution_whose_output_has_several_users() -> None:
    ranges = {"conv": LayerRanges(RANGE, output=ActivationRange(-4.0, 4.0))}
    text = CONV.replace("(float[n, 12, p, q] y)", "(float[n, 12, p, q] a, float[n, 12, p, q] b)")
    text = text.replace("}", "a = Relu(y)\n b = Neg(y)\n}")
    packaged = quantized_model(text, CONV_SHAPES, {"conv": INT8}, ranges=ranges)
    assert len(quantizers(packaged)) == 2
    (relu,), (neg,) = packaged.of("Relu"), packaged.of("Neg")
    assert relu.inputs[0] is neg.inputs[0] and relu.inputs[0].producer().op_type == "DequantizeLinear"
    a, b = run(packaged.model, {"x": small(1, 64, 4, 5)})
    np.testing.assert_array_equal(a, np.maximum(-b, 0))


POINTWISE = CONV.replace("3, 3]", "1, 1]").replace("[1, 1, 1, 1]", "[0, 0, 0, 0]")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "openvino-avx2"])
@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)], ids=["linear", "1x1", "3x3"])
def test_unsaturated_codes_at_full_range(kernel: tuple[int, ...], runtime: str, tmp_path: Path) -> None:
    """The largest codes times weights of one sign: exact on every processor, where AVX2's sums of int8 lack a tenth."""
    layer, text = ("conv", CONV if kernel == (3, 3) else POINTWISE) if kernel else ("linear", LINEAR)
    weight = random(12, 64, *kernel).abs() + 0.5
    weight[::2] *= -1
    x = torch.full((1, 64, 4, 5) if kernel else (2, 5, 64), RANGE.high)
    x[..., ::3] = RANGE.low  # code 0
    size = float(weight.flatten(1).sum(1).abs().max()) * RANGE.high
    ranges = LayerRanges(RANGE, output=ActivationRange(-size, size) if kernel else None)
    packaged = quantized_model(
        text.replace("24", "12"), {f"{layer}.weight": tuple(weight.shape), f"{layer}.bias": (12,)},
        {layer: from_label("int8-unsaturated")}, ranges={layer: ranges}, weights={f"{layer}.weight": weight},
    )  # fmt: skip
    if runtime == "onnxruntime":
        (y,) = run(packaged.model, {"x": x})
    else:
        y = run_openvino(packaged.model, x, tmp_path, "AVX2" if runtime == "openvino-avx2" else "DEFAULT")
    sums = products_of(packaged, layer, rounded(x, RANGE))
    if ranges.output is None:
        # Sums of integers are exact; the scales, their product and the result are rounded to float32.
        np.testing.assert_allclose(y, sums, rtol=4 * 2**-24)
    else:
        check_codes(y, sums, ranges.output)
