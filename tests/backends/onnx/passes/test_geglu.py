"""geglu: MatMul, Add and Split in two become two MatMuls and two Adds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_graphs import TOLERANCE, build, operators, random, run

from sdcompress.backends.onnx.passes import geglu, linear
from sdcompress.backends.onnx.weights import view_of

X = random(2, 3, 8)


def gated(width: int, split: str = "Split<axis = -1, num_outputs = 2>(h)", also: str = "") -> str:
    return f"""g (float[n, s, 8] x, float[{width}, 8] w, float[{width}] b) => (float[n, s, p] y{also}) {{
            t = Transpose<perm = [1, 0]>(w)
            m = MatMul(x, t)
            h = Add(m, b)
            a, g = {split}
            y = Mul(a, g)
        }}"""


def parameters(width: int) -> dict[str, torch.Tensor]:
    return {"w": random(width, 8, seed=1), "b": random(width, seed=2)}


@pytest.mark.parametrize("axis", [-1, 2])
def test_the_same_numbers(axis: int) -> None:
    model = build(gated(12, f"Split<axis = {axis}, num_outputs = 2>(h)"), parameters(12))
    linear.apply(model)
    (before,) = run(model, {"x": X}, parameters(12))
    assert geglu.apply(model) == (1, 1)
    assert operators(model) == {"MatMul": 2, "Add": 2, "Mul": 1}
    assert sorted(model.graph.initializers) == ["b[0:6]", "b[6:12]", "w[0:6]", "w[6:12]"]
    assert {view_of(value).rows for value in model.graph.initializers.values()} == {(0, 6), (6, 12)}
    # A product of two sums: values up to about 50.
    np.testing.assert_allclose(run(model, {"x": X}, parameters(12))[0], before, rtol=TOLERANCE, atol=TOLERANCE)


def test_odd_width_stays() -> None:
    text = gated(5).replace("float[n, s, p] y", "float[n, s, 3] a, float[n, s, 2] g").replace("y = Mul(a, g)", "")
    model = build(text, parameters(5))
    linear.apply(model)
    assert geglu.apply(model) == (1, 0)
    assert operators(model) == {"MatMul": 1, "Add": 1, "Split": 1}


def test_unequal_halves_stay() -> None:
    text = gated(12, "Split<axis = -1>(h, sizes)").replace("y = Mul(a, g)", "")
    text = text.replace("float[n, s, p] y", "float[n, s, 4] a, float[n, s, 8] g")
    text = text.replace(") {", ") <int64[2] sizes = {4, 8}> {", 1)
    model = build(text, parameters(12))
    linear.apply(model)
    before = run(model, {"x": X}, parameters(12))
    assert geglu.apply(model) == (1, 0)
    for now, then in zip(run(model, {"x": X}, parameters(12)), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_other_axis_stays() -> None:
    model = build(gated(12, "Split<axis = 1, num_outputs = 2>(h)"), parameters(12))
    linear.apply(model)
    assert geglu.apply(model) == (1, 0)


def test_whole_that_is_used_elsewhere_stays() -> None:
    """Else the weight would be in the graph twice, whole and in halves."""
    model = build(gated(12, also=", float[n, s, 12] h"), parameters(12))
    linear.apply(model)
    assert geglu.apply(model) == (1, 0)
    assert sorted(model.graph.initializers) == ["b", "w"]


def test_weight_of_two_layers_stays() -> None:
    text = gated(12, also=", float[n, s, 12] z").replace("y = Mul(a, g)", "y = Mul(a, g)\n z = MatMul(x, t)")
    model = build(text, parameters(12))
    linear.apply(model)
    assert geglu.apply(model) == (1, 0)


def test_split_of_what_is_no_linear_layer_is_no_candidate() -> None:
    model = build(
        """g (float[n, s, 8] x) => (float[n, s, 4] y) {
            a, g = Split<axis = -1, num_outputs = 2>(x)
            y = Mul(a, g)
        }""",
        {},
    )
    assert geglu.apply(model) == (0, 0)
