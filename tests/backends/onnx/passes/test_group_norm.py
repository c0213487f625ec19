"""group normalization: GroupNormalization by way of ONNX Runtime's InstanceNormalization."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_graphs import TOLERANCE, build, check_pass, operators, random, run

from sdcompress.backends.onnx.passes import group_norm

PARAMETERS = {"w": random(8, seed=1), "b": random(8, seed=2)}


def normalization(shape: str, epsilon: float) -> str:
    return f"""g (float[{shape}] x, float[8] w, float[8] b) => (float[{shape}] y) {{
            y = GroupNormalization<num_groups = 4, epsilon = {epsilon}>(x, w, b)
        }}"""


@pytest.mark.parametrize(("shape", "sizes"), [("n, 8, h, v", (2, 8, 3, 5)), ("n, 8, s", (2, 8, 7))])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_the_same_numbers(shape: str, sizes: tuple[int, ...], epsilon: float) -> None:
    x = 3 * random(*sizes) + 1
    model = build(normalization(shape, epsilon), PARAMETERS)
    left = {"Reshape": 4, "Shape": 1, "InstanceNormalization": 1, "Mul": 1, "Add": 1}
    check_pass(group_norm.apply, model, {"x": x}, PARAMETERS, left=left)
    assert tuple(model.graph.initializers["w"].shape.numpy()) == (8,)  # as in the file
    (after,) = run(model, {"x": x}, PARAMETERS)
    expected = torch.nn.functional.group_norm(x, 4, PARAMETERS["w"], PARAMETERS["b"], epsilon)
    np.testing.assert_allclose(after, expected, atol=TOLERANCE)


def test_two_share_their_constants() -> None:
    model = build(
        """g (float[n, 8, h, v] x, float[8] w, float[8] b) => (float[n, 8, h, v] y) {
            m = GroupNormalization<num_groups = 4>(x, w, b)
            y = GroupNormalization<num_groups = 4>(m, w, b)
        }""",
        PARAMETERS,
    )
    check_pass(group_norm.apply, model, {"x": random(2, 8, 3, 5)}, PARAMETERS, counts=(2, 2))
    assert len(model.graph.initializers) == len(PARAMETERS) + 4


def test_input_of_unknown_shape_stays() -> None:
    model = build(normalization("n, 8, h, v", 1e-5), PARAMETERS)
    model.graph.inputs[0].shape = None
    assert group_norm.apply(model) == (1, 0)
    assert operators(model) == {"GroupNormalization": 1}
