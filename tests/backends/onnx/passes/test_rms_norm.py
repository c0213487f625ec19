"""rms normalization: RMSNormalization as the operators it stands for, held to its definition."""

from __future__ import annotations

import numpy as np
from small_graphs import TOLERANCE, build, operators, random, run

from sdcompress.backends.onnx.passes import rms_norm


def test_the_numbers_of_its_definition() -> None:
    node = "y = RMSNormalization<axis = -1, epsilon = 0.001>(x, w)"
    weight = {"w": random(8, seed=3)}
    model = build(f"g (float[2, 3, 8] x, float[8] w) => (float[2, 3, 8] y) {{ {node} }}", weight)
    assert rms_norm.apply(model) == (1, 1)
    assert "RMSNormalization" not in operators(model)
    x, w = random(2, 3, 8).double().numpy(), random(8, seed=3).double().numpy()
    expected = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 0.001) * w
    np.testing.assert_allclose(run(model, {"x": random(2, 3, 8)}, weight)[0], expected, atol=TOLERANCE)


def test_other_axes_stay() -> None:
    model = build(
        "g (float[2, 3, 8] x, float[3, 8] w) => (float[2, 3, 8] y) { y = RMSNormalization<axis = 1>(x, w) }",
        {"w": random(3, 8, seed=3)},
    )
    assert rms_norm.apply(model) == (1, 0)
