"""Formats with all their options: what is stored, what it stands for, and that corrections correct."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from random_weights import random, statistics_of
from torch.nn import functional as F

from sdcompress.quant.compose import quantize_weight, restored
from sdcompress.quant.corrections.hadamard import rotated_input, rotated_weight
from sdcompress.quant.corrections.low_rank import product
from sdcompress.quant.error import output_sqnr_db, sqnr_db
from sdcompress.quant.grid_format import GridFormat
from sdcompress.quant.registry import from_label, known_formats
from sdcompress.quant.rounding import Rounding
from sdcompress.quant.rounding.gptq import GPTQ
from sdcompress.quant.rounding.nearest import Nearest
from sdcompress.quant.rounding.search import Search, WeightedSearch
from sdcompress.quant.statistics import LayerStatistics
from sdcompress.sources.spec import parameter

OURS = sorted(name for name, kind in known_formats().items() if isinstance(kind, GridFormat))


def correlated(columns: int, *sizes: int) -> LayerStatistics:
    """Statistics of rows whose columns go together, as those of real layers do."""
    rows = random(400, 8, seed=7) @ random(8, columns, seed=8) + 0.3 * random(400, columns, seed=9) + 0.2
    return statistics_of(rows, *sizes)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(("rank", "hadamard"), [(0, False), (3, False), (0, True), (3, True)])
@pytest.mark.parametrize("shape", [(24, 40), (24, 12, 3, 3)])
def test_every_format_with_every_correction(name: str, rank: int, hadamard: bool, shape: tuple[int, ...]) -> None:
    fmt = replace(known_formats()[name], rank=rank, hadamard=hadamard)
    weight = random(*shape).half()
    tensor = quantize_weight(weight, fmt, Nearest())
    assert tensor.format == fmt and tensor.shape == shape
    specs = fmt.stored(parameter(shape, "F16"))
    assert list(specs) == list(tensor.parts())
    assert {key: tuple(part.shape) for key, part in tensor.parts().items()} == {k: s.shape for k, s in specs.items()}
    # Every further bit halves the step; 2 bits of a normal distribution reach 3 dB at the least.
    assert sqnr_db(weight, restored(tensor, torch.float32)) > 6 * (fmt.bits - 2) + 3
    assert restored(tensor, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("rounding", [Nearest(), Search(), WeightedSearch(), GPTQ()])
def test_without_corrections_it_is_the_rounding_alone(rounding: Rounding) -> None:
    weight, statistics = random(24, 40), correlated(40)
    parts = quantize_weight(weight, from_label("uint4"), rounding, statistics).parts()
    expected = rounding.quantize(weight, from_label("uint4"), statistics).parts()
    assert list(parts) == list(expected) and all(torch.equal(parts[name], expected[name]) for name in parts)


def test_bitsandbytes_formats_choose_their_own_codes() -> None:
    pytest.importorskip("bitsandbytes")
    weight = random(16, 64)
    tensor, expected = quantize_weight(weight, from_label("nf4"), Search()), from_label("nf4").quantize(weight)
    assert torch.equal(tensor.codes, expected.codes)
    assert torch.equal(restored(tensor, torch.float32), expected.dequantize(torch.float32))


@pytest.mark.parametrize("label", ["uint4+hadamard", "uint4+rank4+hadamard"])
def test_a_layer_that_rotates_its_input_computes_with_the_restored_weight(label: str) -> None:
    weight, x = random(24, 48, 3, 3), random(2, 48, 7, 7, seed=1)
    tensor = quantize_weight(weight, from_label(label), Search())
    running = F.conv2d(rotated_input(x, 1), tensor.dequantize(torch.float32), padding=1)
    # float32 sums of 432 products of size 1.
    torch.testing.assert_close(running, F.conv2d(x, restored(tensor, torch.float32), padding=1), atol=1e-3, rtol=0)


def test_what_is_rounded_is_the_rotated_weight_with_rotated_statistics() -> None:
    weight, statistics = random(24, 48), correlated(48, 20, 28)  # blocks that part rotated channels
    tensor = quantize_weight(weight, from_label("uint4+hadamard"), GPTQ(), statistics)
    joined = LayerStatistics(400, statistics.mean, (torch.block_diag(*statistics.moments),))
    rotation = rotated_input(torch.eye(48), 1)
    moments = (rotation @ joined.moments[0] @ rotation,)
    by_hand = LayerStatistics(400, rotated_input(statistics.mean, 0), moments)
    expected = GPTQ().quantize(rotated_weight(weight), from_label("uint4"), by_hand)
    # Sums in another order may move a weight over the edge between two codes: a few in a thousand.
    assert float((tensor.codes != expected.codes).float().mean()) < 0.01


def test_an_outlier_costs_less_when_it_is_rotated() -> None:
    weight = random(24, 64)
    weight[:, 5] *= 20
    tensors = (quantize_weight(weight, from_label(f"uint3/64{more}"), Nearest()) for more in ("", "+hadamard"))
    alone, rotated = (sqnr_db(weight, restored(tensor, torch.float32)) for tensor in tensors)
    assert rotated > alone + 3


@pytest.mark.parametrize("rounding", [Nearest(), WeightedSearch(), GPTQ()])
def test_a_low_rank_part_is_kept_apart_from_the_rounding(rounding: Rounding) -> None:
    weight, statistics = random(32, 64) + 3 * random(32, 2, seed=1) @ random(2, 64, seed=2), correlated(64)
    tensors = (quantize_weight(weight, from_label(label), rounding, statistics) for label in ("uint3", "uint3+rank2"))
    alone, corrected = (output_sqnr_db(weight, restored(tensor, torch.float32), statistics) for tensor in tensors)
    assert corrected > alone + 6


def test_known_inputs_fit_the_low_rank_part_to_the_output() -> None:
    """The refit makes up for the error in the output: no product of that rank does more for these codes."""
    weight, statistics = random(32, 64), correlated(64)
    tensor = quantize_weight(weight, from_label("uint3+rank4"), Nearest(), statistics)
    blind = quantize_weight(weight, from_label("uint3+rank4"), Nearest())
    assert torch.equal(tensor.codes, blind.codes)
    seen = output_sqnr_db(weight, restored(tensor, torch.float32), statistics)
    assert seen > output_sqnr_db(weight, restored(blind, torch.float32), statistics) + 3
    rest = from_label("uint3").dequantize(replace(tensor, low_rank_up=None, low_rank_down=None), torch.float32)
    root = torch.linalg.cholesky(statistics.moments[0].double())
    values = torch.linalg.svdvals((weight - rest).double() @ root)
    signal = float((weight.double() @ root).square().sum())
    bound = 10 * math.log10(signal / float(values[4:].square().sum()))
    # Eckart and Young, less what rounding the halves to float16 takes: 2^-11 of an error of -10 dB.
    assert bound - 0.1 < seen <= bound + 1e-3
    assert tensor.low_rank_up is not None and tensor.low_rank_down is not None
    correction = product(tensor.low_rank_up, tensor.low_rank_down, (32, 64))
    torch.testing.assert_close(rest + correction, restored(tensor, torch.float32), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("label", ["uint4", "uint4+rank2", "uint4+hadamard"])
def test_refuses_what_no_code_can_stand_for(label: str) -> None:
    weight = random(8, 16)
    weight[1, 2] = math.nan
    with pytest.raises(ValueError, match="1 of 128 values are NaN or infinite"):
        quantize_weight(weight, from_label(label), Search())


def test_the_weight_stays_as_it_was_and_the_same_bytes_come_out() -> None:
    weight, statistics = random(24, 48), correlated(48)
    copy, fmt = weight.clone(), from_label("uint4+rank3+hadamard")
    first, second = (quantize_weight(weight, fmt, GPTQ(), statistics).parts() for _ in range(2))
    assert torch.equal(weight, copy)
    assert all(torch.equal(first[name], second[name]) for name in first)
