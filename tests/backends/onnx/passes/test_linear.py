"""linear: Transpose and MatMul, and Gemm, become MatMul on a weight stored the other way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_graphs import TOLERANCE, build, check_pass, operators, random

from sdcompress.backends.onnx.passes import linear
from sdcompress.backends.onnx.weights import view_of

X = random(2, 3, 8)
W, B = random(5, 8, seed=1), random(5, seed=2)


SQUARE = random(8, 8)


def test_transposed_weight() -> None:
    parameters = {"w": W, "b": B}
    model = build(
        """g (float[n, s, 8] x, float[5, 8] w, float[5] b) => (float[n, s, 5] y) {
            t = Transpose<perm = [1, 0]>(w)
            p = MatMul(x, t)
            y = Add(p, b)
        }""",
        parameters,
    )
    check_pass(linear.apply, model, {"x": X}, parameters, left={"MatMul": 1, "Add": 1})
    weight = model.graph.initializers["w"]
    assert view_of(weight).transposed and tuple(weight.shape.numpy()) == (8, 5)


@pytest.mark.parametrize("bias", [True, False])
def test_gemm(bias: bool) -> None:
    parameters = {"w": W, **({"b": B} if bias else {})}
    model = build(
        f"""g (float[n, 8] x, float[5, 8] w{", float[5] b" if bias else ""}) => (float[n, 5] y) {{
            y = Gemm<transB = 1>(x, w{", b" if bias else ""})
        }}""",
        parameters,
    )
    check_pass(linear.apply, model, {"x": X[0]}, parameters, left={"MatMul": 1, **({"Add": 1} if bias else {})})


def test_weight_of_two_layers_is_transposed_once() -> None:
    model = build(
        """g (float[n, s, 8] x, float[8, 8] w) => (float[n, s, 8] y) {
            t = Transpose<perm = [1, 0]>(w)
            p = MatMul(x, t)
            u = Transpose<perm = [1, 0]>(w)
            y = MatMul(p, u)
        }""",
        {"w": SQUARE},
    )
    # Two products after one another: values up to about 100.
    check_pass(
        linear.apply, model, {"x": X}, {"w": SQUARE}, left={"MatMul": 2}, counts=(2, 2), tolerance=10 * TOLERANCE
    )


def test_weight_that_something_else_uses_stays() -> None:
    model = build(
        """g (float[n, s, 8] x, int64[k] i, float[5, 8] w) => (float[n, s, 5] y, float[k, 8] z) {
            t = Transpose<perm = [1, 0]>(w)
            y = MatMul(x, t)
            z = Gather<axis = 0>(w, i)
        }""",
        {"w": W},
    )
    left = {"Transpose": 1, "MatMul": 1, "Gather": 1}
    check_pass(linear.apply, model, {"x": X, "i": np.array([4, 0])}, {"w": W}, left=left, counts=(1, 0))


@pytest.mark.parametrize("attributes", ["transB = 1, alpha = 0.5", "transB = 1, beta = 2.0", "transB = 1, transA = 1"])
def test_other_gemm_stays(attributes: str) -> None:
    text = f"g (float[8, 8] x, float[8, 8] w, float[8] b) => (float[8, 8] y) {{ y = Gemm<{attributes}>(x, w, b) }}"
    model = build(text, {"w": SQUARE, "b": random(8)})
    assert linear.apply(model) == (1, 0)
    assert operators(model) == {"Gemm": 1}


@pytest.mark.parametrize(
    ("text", "parameters", "counts"),
    [
        ("""g (float[n, 8] x, float[8, 8] w) => (float[n, 8] y) {
            p = Gemm<transB = 1>(x, w)
            y = Gemm<transB = 1>(p, w)
        }""", {"w": SQUARE}, (2, 0)),
        ("""g (float[n, 8] x, float[k, 8] z) => (float[n, k] y) {
            t = Transpose<perm = [1, 0]>(z)
            y = MatMul(x, t)
        }""", {}, (0, 0)),
    ],
    ids=["Gemm whose weight is used twice", "product of computed values"],
)  # fmt: skip
def test_what_stays(text: str, parameters: dict[str, torch.Tensor], counts: tuple[int, int]) -> None:
    assert linear.apply(build(text, parameters)) == counts
