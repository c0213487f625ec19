"""bitsandbytes' formats against bitsandbytes itself."""

from __future__ import annotations

import pytest
import torch
from random_weights import random

from sdcompress.quant.registry import from_label
from sdcompress.sources.spec import Layer

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install 'sdcompress[bnb]')")


@pytest.mark.parametrize("label", ["nf4", "fp4", "nf4/128", "fp4/128"])
@pytest.mark.parametrize("shape", [(64, 128), (64, 64), (33, 7, 3, 3), (5, 13)])
def test_four_bits_are_bitsandbytes_own(label: str, shape: tuple[int, ...]) -> None:
    weight, fmt, size = random(*shape).half(), from_label(label), from_label(label).group_size or 64
    result = fmt.quantize(weight)
    with torch.compiler.set_stance("force_eager"):
        codes, state = bnb.functional.quantize_4bit(weight, quant_type=fmt.name, blocksize=size)
        state.dtype = torch.float32
        dequantized = bnb.functional.dequantize_4bit(codes, state)
    assert torch.equal(result.codes, codes) and result.scale is not None and torch.equal(result.scale, state.absmax)
    halves = [half for byte in codes.view(-1).tolist() for half in (byte >> 4, byte & 15)][: weight.numel()]
    maxima = state.absmax.repeat_interleave(size)[: weight.numel()]
    values = bnb.functional.get_4bit_type(fmt.name, device="cpu")
    assert torch.equal(result.dequantize(torch.float32), (values[halves] * maxima).view(shape))
    if shape[-1] % size == 0:  # elsewhere bitsandbytes 0.50.2 is wrong on a CPU with AVX512
        assert torch.equal(result.dequantize(torch.float32), dequantized)


def test_nf4_error_is_within_half_the_widest_gap() -> None:
    weight = random(128, 128).half()
    result = from_label("nf4").quantize(weight)
    gap = float(bnb.functional.get_4bit_type("nf4", device="cpu").diff().max())
    assert result.scale is not None
    bound = result.scale.repeat_interleave(64) * gap / 2
    error = (result.dequantize(torch.float32) - weight.float()).abs().view(-1)
    assert bool((error <= bound * (1 + 1e-5)).all())  # float32 rounding of code times maximum


def test_eight_bit_rows_are_within_half_a_step() -> None:
    weight = random(32, 16, 3, 3).half()
    result = from_label("llm-int8").quantize(weight)
    assert result.scale is not None
    error = (result.dequantize(torch.float32) - weight.float()).abs().flatten(1)
    # bitsandbytes computes the quotient with a float32 reciprocal: one unit in the last place of 127.
    assert bool((error <= result.scale[:, None] / 127 * (0.5 + 127 * 2**-22)).all())


def test_block_sizes_without_a_kernel_are_named() -> None:
    layer = Layer("a.b", "linear", 64, "a.b.weight", (8, 8))
    assert from_label("nf4").problem(layer) is None
    problems = [from_label(label).problem(layer) for label in ("nf4/48", "llm-int8/64")]
    assert [problem and problem.field for problem in problems] == ["group_size", "group_size"]
