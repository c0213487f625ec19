"""linear: Transpose and MatMul, and Gemm, become MatMul on a weight stored the other way."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import TOLERANCE, build, operators, random, run

from sdcompress.backends.onnx.passes import linear
from sdcompress.backends.onnx.weights import view_of

X = random(2, 3, 8)
W, B = random(5, 8, seed=1), random(5, seed=2)


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
    (before,) = run(model, {"x": X}, parameters)
    assert linear.apply(model) == (1, 1)
    assert operators(model) == {"MatMul": 1, "Add": 1}
    weight = model.graph.initializers["w"]
    assert view_of(weight).transposed and tuple(weight.shape.numpy()) == (8, 5)
    np.testing.assert_allclose(run(model, {"x": X}, parameters)[0], before, atol=TOLERANCE)


@pytest.mark.parametrize("bias", [True, False])
def test_gemm(bias: bool) -> None:
    parameters = {"w": W, **({"b": B} if bias else {})}
    model = build(
        f"""g (float[n, 8] x, float[5, 8] w{", float[5] b" if bias else ""}) => (float[n, 5] y) {{
            y = Gemm<transB = 1>(x, w{", b" if bias else ""})
        }}""",
        parameters,
    )
    x = {"x": X[0]}
    (before,) = run(model, x, parameters)
    assert linear.apply(model) == (1, 1)
    assert operators(model) == {"MatMul": 1, **({"Add": 1} if bias else {})}
    assert model.graph.outputs[0].name == "y"
    np.testing.assert_allclose(run(model, x, parameters)[0], before, atol=TOLERANCE)


def test_weight_of_two_layers_is_turned_once() -> None:
    model = build(
        """g (float[n, s, 8] x, float[8, 8] w) => (float[n, s, 8] y) {
            t = Transpose<perm = [1, 0]>(w)
            p = MatMul(x, t)
            u = Transpose<perm = [1, 0]>(w)
            y = MatMul(p, u)
        }""",
        {"w": random(8, 8)},
    )
    parameters = {"w": random(8, 8)}
    (before,) = run(model, {"x": X}, parameters)
    assert linear.apply(model) == (2, 2)
    assert operators(model) == {"MatMul": 2}
    # Two products after one another: values up to about 100.
    np.testing.assert_allclose(run(model, {"x": X}, parameters)[0], before, rtol=TOLERANCE, atol=10 * TOLERANCE)


def test_weight_that_something_else_uses_stays() -> None:
    parameters = {"w": W}
    model = build(
        """g (float[n, s, 8] x, int64[k] i, float[5, 8] w) => (float[n, s, 5] y, float[k, 8] z) {
            t = Transpose<perm = [1, 0]>(w)
            y = MatMul(x, t)
            z = Gather<axis = 0>(w, i)
        }""",
        parameters,
    )
    before = run(model, {"x": X, "i": np.array([4, 0])}, parameters)
    assert linear.apply(model) == (1, 0)
    assert operators(model) == {"Transpose": 1, "MatMul": 1, "Gather": 1}
    for now, then in zip(run(model, {"x": X, "i": np.array([4, 0])}, parameters), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("attributes", ["transB = 1, alpha = 0.5", "transB = 1, beta = 2.0", "transB = 1, transA = 1"])
def test_other_gemm_stays(attributes: str) -> None:
    model = build(
        f"""g (float[8, 8] x, float[8, 8] w, float[8] b) => (float[8, 8] y) {{
            y = Gemm<{attributes}>(x, w, b)
        }}""",
        {"w": random(8, 8), "b": random(8)},
    )
    assert linear.apply(model) == (1, 0)
    assert operators(model) == {"Gemm": 1}


def test_gemm_whose_weight_is_used_twice_stays() -> None:
    model = build(
        """g (float[n, 8] x, float[8, 8] w) => (float[n, 8] y) {
            p = Gemm<transB = 1>(x, w)
            y = Gemm<transB = 1>(p, w)
        }""",
        {"w": random(8, 8)},
    )
    assert linear.apply(model) == (2, 0)


def test_products_of_two_computed_values_are_no_candidates() -> None:
    model = build(
        """g (float[n, 8] x, float[k, 8] z) => (float[n, k] y) {
            t = Transpose<perm = [1, 0]>(z)
            y = MatMul(x, t)
        }""",
        {},
    )
    assert linear.apply(model) == (0, 0)
