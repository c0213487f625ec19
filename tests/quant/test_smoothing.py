"""Scaling leaves a layer's output alone, and loses less of it when inputs are uneven."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_weights import random, statistics_of
from torch.nn import functional as F

from sdcompress.families.foldable import Fold
from sdcompress.quant.compose import quantize_weight, restored
from sdcompress.quant.error import output_sqnr_db
from sdcompress.quant.registry import from_label
from sdcompress.quant.rounding.search import WeightedSearch
from sdcompress.quant.smoothing import LARGEST_SCALE, scaled, scaled_statistics, scales_for

FOLD = Fold((("norm.weight", None), ("gate.weight", (0, 48))), ("first", "second"))


def uneven(channels: int = 48, seed: int = 5) -> torch.Tensor:
    """[500, channels]: rows in which every sixteenth channel is thirty times the others."""
    size = torch.ones(channels)
    size[::16] = 30
    return random(500, channels, seed=seed) * size


def test_scaled_tensors_give_the_same_output() -> None:
    scales = (random(48).double() / 2).exp()
    gain, gate, first = random(48).double(), random(96, 7, seed=1).double(), random(5, 48, 3, 3, seed=2).double()
    x, y = random(2, 48, 6, 6, seed=3).double(), random(4, 7, seed=4).double()

    def run(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        value, gated = F.linear(y, tensors["gate.weight"]).chunk(2, dim=1)
        normed = x * tensors["norm.weight"].view(1, -1, 1, 1)
        return F.conv2d(normed, tensors["first.weight"], padding=1), F.linear(value * gated, tensors["second.weight"])

    tensors = {"norm.weight": gain, "gate.weight": gate, "first.weight": first, "second.weight": gate.T[:, :48]}
    changed = {name: scaled(name, tensor, FOLD, scales) for name, tensor in tensors.items()}
    assert not any(torch.equal(changed[name], tensor) for name, tensor in tensors.items())
    for one, other in zip(run(changed), run(tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)  # float64 sums of some hundred terms of size 10


def test_a_tensor_without_part_in_the_fold_is_itself() -> None:
    tensor = random(48)
    assert scaled("first.bias", tensor, FOLD, torch.ones(48)) is tensor


def test_the_original_stays_as_it_was() -> None:
    for name, shape in (("norm.weight", (48,)), ("gate.weight", (96, 7)), ("first.weight", (5, 48))):
        tensor = random(*shape)
        copy = tensor.clone()
        scaled(name, tensor, FOLD, torch.full((48,), 2.0))
        assert torch.equal(tensor, copy)


def test_what_does_not_fit_is_refused() -> None:
    weight = torch.full((5, 48), 30000.0, dtype=torch.float16)
    assert scaled("first.weight", weight, FOLD, torch.full((48,), 2.0)).dtype == torch.float16
    with pytest.raises(ValueError, match=r"first\.weight: scaled, it does not fit torch.float16"):
        scaled("first.weight", weight, FOLD, torch.full((48,), 3.0))


@pytest.mark.parametrize(("positions", "sizes"), [(1, (48,)), (4, (64, 128))])
def test_statistics_are_those_of_divided_rows(positions: int, sizes: tuple[int, ...]) -> None:
    rows, scales = random(300, 48 * positions), (random(48, seed=1) / 2).exp()
    result = scaled_statistics(statistics_of(rows, *sizes), scales)
    expected = statistics_of(rows / scales.repeat_interleave(positions), *sizes)
    assert result.count == 300
    # float32 sums of 300 products of size 10.
    torch.testing.assert_close(result.mean, expected.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.moments, expected.moments, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("label", ["uint4", "uint3/16+hadamard", "uint4+rank2"])
def test_uneven_inputs_lose_less_of_the_output(label: str) -> None:
    fmt = from_label(label)
    weights = {"first": random(32, 48), "second": random(20, 48, seed=1)}
    statistics = dict.fromkeys(weights, statistics_of(uneven()))
    scales = scales_for(FOLD, weights, statistics, fmt)
    assert float(scales[::16].min()) > 1.2 * float(scales[1::16].max())
    plain = replace(fmt, rank=0)
    for layer, weight in weights.items():
        tensor = quantize_weight(weight, plain, WeightedSearch(), statistics[layer])
        alone = output_sqnr_db(weight, restored(tensor, torch.float32), statistics[layer])
        seen = scaled_statistics(statistics[layer], scales)
        tensor = quantize_weight(weight * scales, plain, WeightedSearch(), seen)
        assert output_sqnr_db(weight * scales, restored(tensor, torch.float32), seen) > alone + 1


def test_even_inputs_are_left_alone() -> None:
    x = torch.cat([torch.eye(48), -torch.eye(48)]) * 48**0.5  # E[x x^T] is a multiple of 1
    statistics = dict.fromkeys(("first", "second"), statistics_of(x))
    weights = {"first": random(8, 48), "second": random(8, 48, seed=1)}
    scales = scales_for(FOLD, weights, statistics, from_label("uint4"))
    assert torch.equal(scales, torch.ones(48))


def test_scales_are_bounded() -> None:
    x = random(500, 48)
    x[:, 0] *= 1e6
    x[:, 1] = 0  # a channel that never has a value
    statistics = dict.fromkeys(("first", "second"), statistics_of(x))
    weights = {"first": random(8, 48), "second": random(8, 48, seed=1)}
    scales = scales_for(FOLD, weights, statistics, from_label("uint3"))
    assert float(scales.max()) <= LARGEST_SCALE and float(scales.min()) >= 1 / LARGEST_SCALE
    assert float(scales.max()) > 2


def test_kernel_positions_share_their_channel_s_scale_and_the_same_comes_out_again() -> None:
    fold = Fold((("norm.weight", None),), ("first",))
    rows = uneven().repeat_interleave(4, dim=1) * (1 + 0.1 * random(500, 192, seed=6))
    weights, statistics = {"first": random(12, 48, 2, 2)}, {"first": statistics_of(rows, 64, 128)}
    scales = scales_for(fold, weights, statistics, from_label("uint3"))
    assert scales.shape == (48,) and torch.equal(scales, scales_for(fold, weights, statistics, from_label("uint3")))
    assert float(scales[::16].min()) > 1.2 * float(scales[1::16].max())


def test_formats_of_bitsandbytes_are_searched_too() -> None:
    pytest.importorskip("bitsandbytes")
    weights = {"first": random(32, 48), "second": random(20, 48, seed=1)}
    scales = scales_for(FOLD, weights, dict.fromkeys(weights, statistics_of(uneven())), from_label("nf4"))
    assert float(scales[::16].min()) > 1.2 * float(scales[1::16].max())
