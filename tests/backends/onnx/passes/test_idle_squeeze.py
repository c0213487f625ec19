"""idle squeeze: a Squeeze that was traced to do nothing is taken out; one that does something stays."""

from __future__ import annotations

import numpy as np
from small_graphs import build, operators, random, run

from sdcompress.backends.onnx.passes import idle_squeeze
from sdcompress.backends.onnx.passes.graph_edits import constant, insert


def test_one_that_does_nothing_goes() -> None:
    model = build("g (float[2, s, 8] x) => (float[2, s, 8] y) { y = Relu(x) }", {})
    (relu,) = model.graph
    axis = constant(model.graph, "axis", np.array([1], dtype=np.int64))
    x = model.graph.inputs[0]
    relu.replace_input_with(0, insert(model.graph, relu, "Squeeze", [x, axis], like=x))  # as torch traces it
    assert idle_squeeze.apply(model) == (1, 1)
    assert operators(model) == {"Relu": 1}
    given = random(2, 3, 8)
    np.testing.assert_array_equal(run(model, {"x": given})[0], given.clamp(min=0).numpy())


def test_one_that_does_something_stays() -> None:
    model = build("g (float[2, 1, 8] x) => (float[2, 8] y) <int64[1] axis = {1}> { y = Squeeze(x, axis) }", {})
    assert idle_squeeze.apply(model) == (0, 0)
