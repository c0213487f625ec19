"""Packing: every width and size comes back, in the bytes promised, and as a loop over bits says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcompress.quant.packing import pack, row_bytes, unpack

PLANES = {1: [1], 2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1], 8: [8]}


def slow_row(codes: list[int], bits: int) -> list[int]:
    packed: list[int] = []
    shift = 0
    for plane in PLANES[bits]:
        size = -(-len(codes) * plane // 8)
        run = [0] * size
        for place, code in enumerate(codes):
            run[place % size] |= ((code >> shift) & (2**plane - 1)) << (place // size * plane)
        packed, shift = packed + run, shift + plane
    return packed


@settings(max_examples=120, deadline=None)
@given(bits=st.integers(1, 8), rows=st.integers(1, 3), count=st.integers(1, 70), seed=st.integers(0, 2**16))
def test_round_trip_and_slow_reference(bits: int, rows: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, count), generator=generator).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, row_bytes(count, bits)) and packed.dtype == torch.uint8
    assert packed.tolist() == [slow_row(row, bits) for row in codes.tolist()]
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bytes_of_a_row(bits: int) -> None:
    for count in range(1, 100):
        # Each plane, of which there are at most three, ends in a byte of its own.
        assert -(-count * bits // 8) <= row_bytes(count, bits) <= count * bits // 8 + 3
    assert row_bytes(64, bits) == 8 * bits
