"""Constants next to zero survive the clean-up: Sana divides by a sum that may be zero but for the 1e-15 added to it."""

from __future__ import annotations

import numpy as np
import torch
from small_graphs import build, run

from sdcompress.backends.onnx.cleanup import clean_up


def test_a_division_by_almost_nothing_stays_finite() -> None:
    model = build(
        "g (float[4] x) => (float[4] y) { e = Constant<value = float {1e-15}>() d = Add(x, e) y = Div(x, d) }", {}
    )
    clean_up(model)
    zeros = torch.zeros(4)
    np.testing.assert_array_equal(run(model, {"x": zeros})[0], zeros.numpy())  # 0 / 1e-15, not 0 / 0
