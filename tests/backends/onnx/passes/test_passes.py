"""The passes together: what they report, and that one which can do nothing is an error."""

from __future__ import annotations

import pytest
from small_graphs import build

from sdcompress.backends.onnx.passes import PassResult, run_passes, standard_passes
from sdcompress.errors import InternalError

CAUSAL = """g (float[n, 2, s, 4] q) => (float[n, 2, s, 4] y) {
        y = Attention<is_causal = 1>(q, q, q)
    }"""


def test_a_pass_that_matches_no_candidate_is_an_error() -> None:
    with pytest.raises(InternalError, match=r"unet\.unet: graph pass attention matched none of its 1 candidates"):
        run_passes(build(CAUSAL, {}), standard_passes("standard"), "unet.unet")


def test_what_was_done_is_told_in_order() -> None:
    model = build("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }", {})
    passes = standard_passes("fused")
    assert run_passes(model, passes, "unet.unet") == [PassResult(name, 0, 0) for name in passes]
    partly = {"some": lambda _: (3, 1), "all": lambda _: (2, 2)}
    assert run_passes(model, partly, "x") == [PassResult("some", 3, 1), PassResult("all", 2, 2)]
