"""The corrected bias against what a layer's mean output really is."""

from __future__ import annotations

import pytest
import torch
from random_weights import random
from torch.nn import functional as F

from sdcompress.quant.corrections import bias as bias_module
from sdcompress.quant.corrections.bias import corrected_bias


def test_mean_output_of_a_linear_layer_is_restored() -> None:
    weight, bias, x = random(6, 20), random(6, seed=1), random(500, 20, seed=2) + 1
    rough = (weight * 2).round() / 2
    corrected = corrected_bias(bias, weight, rough, x.mean(0))
    exact, close = F.linear(x, weight, bias).mean(0), F.linear(x, rough, corrected).mean(0)
    # float32 means of 500 outputs of size 5: a few units of 2^-24 each.
    torch.testing.assert_close(close, exact, atol=1e-5, rtol=0)
    assert float((F.linear(x, rough, bias).mean(0) - exact).abs().max()) > 0.1


@pytest.mark.parametrize(("padding", "stride"), [(1, 1), (0, 2)])
def test_mean_output_of_a_convolution_is_restored(padding: int, stride: int) -> None:
    weight, bias, x = random(6, 4, 3, 3), random(6, seed=1), random(5, 4, 8, 8, seed=2) + 1
    rough = (weight * 2).round() / 2
    patches = F.unfold(x, 3, padding=padding, stride=stride)  # [batch, columns, positions]
    corrected = corrected_bias(bias, weight, rough, patches.mean((0, 2)))
    exact, close = (
        F.conv2d(x, w, b, padding=padding, stride=stride).mean((0, 2, 3))
        for w, b in ((weight, bias), (rough, corrected))
    )
    # float32 means of a few hundred outputs of size 10.
    torch.testing.assert_close(close, exact, atol=2e-5, rtol=0)


def test_an_exact_weight_leaves_the_bias_as_it_is() -> None:
    weight, bias = random(6, 20).half(), random(6).half()
    corrected = corrected_bias(bias, weight, weight.clone(), random(20))
    assert corrected.dtype == torch.float16 and torch.equal(corrected, bias)


def test_some_rows_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, rough, mean, bias = random(7, 20), random(7, 20, seed=1), random(20, seed=2), random(7)
    whole = corrected_bias(bias, weight, rough, mean)
    monkeypatch.setattr(bias_module, "_PIECE", 50)
    # Products of other shapes may sum in another order: 20 terms of float32.
    torch.testing.assert_close(corrected_bias(bias, weight, rough, mean), whole, atol=1e-5, rtol=0)
