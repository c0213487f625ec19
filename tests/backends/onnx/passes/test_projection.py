"""projection to tokens: a 1x1 convolution beside the layout of tokens becomes a linear layer on them."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import TOLERANCE, build, operators, random, run

from sdcompress.backends.onnx.passes import projection
from sdcompress.backends.onnx.weights import view_of

IMAGE, TOKENS = random(2, 8, 3, 4), random(2, 3, 4, 8)
W, B = random(6, 8, 1, 1, seed=1), random(6, seed=2)
BOTH = {"w": W, "b": B}
POINTWISE = "kernel_shape = [1, 1], strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1], group = 1"


@pytest.mark.parametrize("bias", [True, False])
def test_into_tokens(bias: bool) -> None:
    parameters = BOTH if bias else {"w": W}
    model = build(
        f"""g (float[n, 8, h, v] x, float[6, 8, 1, 1] w{", float[6] b" if bias else ""}) => (float[n, h, v, 6] y) {{
            c = Conv<{POINTWISE}>(x, w{", b" if bias else ""})
            y = Transpose<perm = [0, 2, 3, 1]>(c)
        }}""",
        parameters,
    )
    (before,) = run(model, {"x": IMAGE}, parameters)
    assert projection.apply(model) == (1, 1)
    assert operators(model) == {"Transpose": 1, "MatMul": 1, **({"Add": 1} if bias else {})}
    view = view_of(model.graph.initializers["w"])
    assert view.matrix and view.transposed
    np.testing.assert_allclose(run(model, {"x": IMAGE}, parameters)[0], before, atol=TOLERANCE)


def test_out_of_tokens() -> None:
    model = build(
        f"""g (float[n, h, v, 8] x, float[6, 8, 1, 1] w, float[6] b) => (float[n, 6, h, v] y) {{
            t = Transpose<perm = [0, 3, 1, 2]>(x)
            y = Conv<{POINTWISE}>(t, w, b)
        }}""",
        BOTH,
    )
    (before,) = run(model, {"x": TOKENS}, BOTH)
    assert projection.apply(model) == (1, 1)
    assert operators(model) == {"MatMul": 1, "Add": 1, "Transpose": 1}
    assert model.graph[-1].op_type == "Transpose" and model.graph.outputs[0].name == "y"
    np.testing.assert_allclose(run(model, {"x": TOKENS}, BOTH)[0], before, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("attributes", "kernel", "channels"),
    [
        (POINTWISE.replace("group = 1", "group = 2"), 1, 4),
        (POINTWISE.replace("pads = [0, 0, 0, 0]", "pads = [1, 1, 1, 1]"), 1, 8),
        (POINTWISE.replace("strides = [1, 1]", "strides = [2, 2]"), 1, 8),
        (POINTWISE.replace("kernel_shape = [1, 1]", "kernel_shape = [3, 3]"), 3, 8),
    ],
)
def test_other_convolutions_are_no_candidates(attributes: str, kernel: int, channels: int) -> None:
    model = build(
        f"""g (float[n, 8, 4, 4] x, float[6, {channels}, {kernel}, {kernel}] w) => (float[n, p, q, 6] y) {{
            c = Conv<{attributes}>(x, w)
            y = Transpose<perm = [0, 2, 3, 1]>(c)
        }}""",
        {"w": random(6, channels, kernel, kernel)},
    )
    assert projection.apply(model) == (0, 0)
    assert operators(model) == {"Conv": 1, "Transpose": 1}


def test_weight_of_two_convolutions_stays() -> None:
    parameters = {"w": random(8, 8, 1, 1)}
    model = build(
        f"""g (float[n, 8, h, v] x, float[8, 8, 1, 1] w) => (float[n, h, v, 8] y) {{
            c = Conv<{POINTWISE}>(x, w)
            d = Conv<{POINTWISE}>(c, w)
            y = Transpose<perm = [0, 2, 3, 1]>(d)
        }}""",
        parameters,
    )
    (before,) = run(model, {"x": IMAGE}, parameters)
    assert projection.apply(model) == (1, 0)
    np.testing.assert_array_equal(run(model, {"x": IMAGE}, parameters)[0], before)


def test_result_that_is_also_used_as_a_picture_stays() -> None:
    model = build(
        f"""g (float[n, 8, h, v] x, float[6, 8, 1, 1] w) => (float[n, h, v, 6] y, float[n, 6, h, v] c) {{
            c = Conv<{POINTWISE}>(x, w)
            y = Transpose<perm = [0, 2, 3, 1]>(c)
        }}""",
        {"w": W},
    )
    assert projection.apply(model) == (0, 0)


def test_other_transposes_are_no_layout_of_tokens() -> None:
    model = build(
        f"""g (float[n, 8, h, v] x, float[6, 8, 1, 1] w) => (float[n, 6, v, h] y) {{
            c = Conv<{POINTWISE}>(x, w)
            y = Transpose<perm = [0, 1, 3, 2]>(c)
        }}""",
        {"w": W},
    )
    assert projection.apply(model) == (0, 0)
