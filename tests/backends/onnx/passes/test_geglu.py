"""geglu: MatMul, Add and Split in two become two MatMuls and two Adds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_graphs import build, check_pass, operators, random

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


def linearized(text: str, width: int = 12) -> Any:
    model = build(text, parameters(width))
    linear.apply(model)
    return model


@pytest.mark.parametrize("axis", [-1, 2])
def test_the_same_numbers(axis: int) -> None:
    model = linearized(gated(12, f"Split<axis = {axis}, num_outputs = 2>(h)"))
    check_pass(geglu.apply, model, {"x": X}, parameters(12), left={"MatMul": 2, "Add": 2, "Mul": 1})
    assert sorted(model.graph.initializers) == ["b[0:6]", "b[6:12]", "w[0:6]", "w[6:12]"]
    assert {view_of(value).rows for value in model.graph.initializers.values()} == {(0, 6), (6, 12)}


ODD = gated(5).replace("float[n, s, p] y", "float[n, s, 3] a, float[n, s, 2] g").replace("y = Mul(a, g)", "")
UNEQUAL = (
    gated(12, "Split<axis = -1>(h, sizes)")
    .replace("y = Mul(a, g)", "")
    .replace("float[n, s, p] y", "float[n, s, 4] a, float[n, s, 8] g")
    .replace(") {", ") <int64[2] sizes = {4, 8}> {", 1)
)
TWO_LAYERS = gated(12, also=", float[n, s, 12] z").replace("y = Mul(a, g)", "y = Mul(a, g)\n z = MatMul(x, t)")


@pytest.mark.parametrize(
    ("text", "width"),
    [
        (ODD, 5),
        (UNEQUAL, 12),
        (gated(12, "Split<axis = 1, num_outputs = 2>(h)"), 12),
        (gated(12, also=", float[n, s, 12] h"), 12),  # else the weight would be in the graph whole and in halves
        (TWO_LAYERS, 12),
    ],
    ids=["odd width", "unequal halves", "other axis", "whole is used too", "weight of two layers"],
)
def test_other_splits_stay(text: str, width: int) -> None:
    model = linearized(text, width)
    before = operators(model)
    assert geglu.apply(model) == (1, 0)
    assert operators(model) == before and {"b", "w"} <= set(model.graph.initializers)


def test_split_of_what_is_no_linear_layer_is_no_candidate() -> None:
    model = build(
        """g (float[n, s, 8] x) => (float[n, s, 4] y) {
            a, g = Split<axis = -1, num_outputs = 2>(x)
            y = Mul(a, g)
        }""",
        {},
    )
    assert geglu.apply(model) == (0, 0)
