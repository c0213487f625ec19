"""projection to tokens: a 1x1 convolution beside the layout of tokens becomes a linear layer on them."""

from __future__ import annotations

import pytest
from small_graphs import build, check_pass, operators, random

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
    left = {"Transpose": 1, "MatMul": 1, **({"Add": 1} if bias else {})}
    check_pass(projection.apply, model, {"x": IMAGE}, parameters, left=left)
    view = view_of(model.graph.initializers["w"])
    assert view.matrix and view.transposed


def test_out_of_tokens() -> None:
    model = build(
        f"""g (float[n, h, v, 8] x, float[6, 8, 1, 1] w, float[6] b) => (float[n, 6, h, v] y) {{
            t = Transpose<perm = [0, 3, 1, 2]>(x)
            y = Conv<{POINTWISE}>(t, w, b)
        }}""",
        BOTH,
    )
    check_pass(projection.apply, model, {"x": TOKENS}, BOTH, left={"MatMul": 1, "Add": 1, "Transpose": 1})
    assert model.graph[-1].op_type == "Transpose"


def conv(attributes: str = POINTWISE, perm: str = "0, 2, 3, 1", also: str = "", kernel: str = "8, 1, 1") -> str:
    return f"""g (float[n, 8, 4, 4] x, float[6, {kernel}] w) => (float[n, a, b, d] y{also}) {{
            c = Conv<{attributes}>(x, w)
            y = Transpose<perm = [{perm}]>(c)
        }}"""


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (conv(POINTWISE.replace("group = 1", "group = 2"), kernel="4, 1, 1"), (6, 4, 1, 1)),
        (conv(POINTWISE.replace("pads = [0, 0, 0, 0]", "pads = [1, 1, 1, 1]")), (6, 8, 1, 1)),
        (conv(POINTWISE.replace("strides = [1, 1]", "strides = [2, 2]")), (6, 8, 1, 1)),
        (conv(POINTWISE.replace("kernel_shape = [1, 1]", "kernel_shape = [3, 3]"), kernel="8, 3, 3"), (6, 8, 3, 3)),
        (conv(also=", float[n, 6, h, v] c"), (6, 8, 1, 1)),
        (conv(perm="0, 1, 3, 2"), (6, 8, 1, 1)),
    ],
    ids=["groups", "padding", "strides", "3x3", "result is used as a picture", "other transpose"],
)
def test_other_convolutions_are_no_candidates(text: str, shape: tuple[int, ...]) -> None:
    model = build(text, {"w": random(*shape)})
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
    check_pass(projection.apply, model, {"x": IMAGE}, parameters, counts=(1, 0))
