"""bitsandbytes' formats against bitsandbytes itself."""

import pytest
import torch

from sdcompress.quant.bitsandbytes import FP4, NF4, LLMInt8
from sdcompress.sources.spec import Layer, parameter

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install 'sdcompress[bnb]')")


def random_weight(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).half()


@pytest.mark.parametrize("kind", [NF4, FP4])
@pytest.mark.parametrize("shape", [(64, 128), (64, 64), (33, 7, 3, 3), (5, 13)])
@pytest.mark.parametrize("block_size", [None, 128])
def test_four_bits_are_bitsandbytes_own(kind, shape, block_size):
    weight, fmt = random_weight(*shape), kind(block_size)
    result = fmt.quantize(weight)
    with torch.compiler.set_stance("force_eager"):
        codes, state = bnb.functional.quantize_4bit(weight, quant_type=fmt.name, blocksize=block_size or 64)
        state.dtype = torch.float32
        dequantized = bnb.functional.dequantize_4bit(codes, state)
    assert torch.equal(result.codes, codes) and torch.equal(result.scale, state.absmax)
    halves = [half for byte in codes.view(-1).tolist() for half in (byte >> 4, byte & 15)][: weight.numel()]
    maxima = state.absmax.repeat_interleave(fmt.block_size)[: weight.numel()]
    assert torch.equal(result.dequantize(torch.float32), (fmt.code_values()[halves] * maxima).view(shape))
    if shape[-1] % fmt.block_size == 0:  # elsewhere bitsandbytes 0.50.2 is wrong on a CPU with AVX512
        assert torch.equal(result.dequantize(torch.float32), dequantized)


@pytest.mark.parametrize("kind", [NF4, FP4])
def test_chunks_do_not_change_the_codes(kind, monkeypatch):
    weight = random_weight(64, 9, 3, 3)
    whole = kind().quantize(weight)
    monkeypatch.setattr("sdcompress.quant.bitsandbytes.CHUNK", 1024)
    pieces = kind().quantize(weight)
    assert torch.equal(whole.codes, pieces.codes) and torch.equal(whole.scale, pieces.scale)


def test_nf4_error_is_within_half_the_widest_gap():
    weight = random_weight(128, 128)
    result = NF4().quantize(weight)
    values = NF4().code_values()
    bound = result.scale.repeat_interleave(64) * float(values.diff().max()) / 2
    error = (result.dequantize(torch.float32) - weight.float()).abs().view(-1)
    assert bool((error <= bound * (1 + 1e-5)).all())  # float32 rounding of code times maximum


def test_eight_bit_rows_are_within_half_a_step():
    weight = random_weight(32, 16, 3, 3)
    result = LLMInt8().quantize(weight)
    step = result.scale / 127
    error = (result.dequantize(torch.float32) - weight.float()).abs().flatten(1)
    # bitsandbytes computes the quotient with a float32 reciprocal: one unit in the last place of 127.
    assert bool((error <= step.unsqueeze(1) * (0.5 + 127 * 2**-22)).all())


@pytest.mark.parametrize("fmt", [NF4(), FP4(256), LLMInt8()])
@pytest.mark.parametrize("shape", [(16, 24), (5, 7, 3, 3)])
def test_stored_specs_are_what_is_stored(fmt, shape):
    weight = random_weight(*shape)
    result, specs = fmt.quantize(weight), fmt.stored(parameter(shape, "F16"))
    assert tuple(result.codes.shape) == specs["codes"].shape
    assert tuple(result.scale.shape) == specs["scale"].shape
    assert result.codes.nbytes == specs["codes"].size_bytes and result.scale.nbytes == specs["scale"].size_bytes


def test_block_sizes_without_a_kernel_are_named():
    layer = Layer("a.b", "linear", 64, "a.b.weight", (8, 8))
    assert NF4().problem(layer) is None
    assert "48 is no block size of bitsandbytes (a.b); use one of 64, 128" in NF4(48).problem(layer).message
    assert "no groups" in LLMInt8(64).problem(layer).message
