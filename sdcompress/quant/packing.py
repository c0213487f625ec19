"""Codes of 2 to 8 bits packed tightly into bytes, row by row.

A row's codes are split into planes of 4, 2 and 1 bits (3 bits: the lower 2 and the upper 1). A plane of p bits holds
8/p codes to a byte: byte j holds codes j, j + m, j + 2m, ... of the row, m being the plane's bytes, so that unpacking
is a shift and a mask of whole runs. Rows begin at a byte of their own, so that rows can be read apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}  # lowest bits first


def row_bytes(count: int, bits: int) -> int:
    """Bytes that a row of `count` codes takes: count * bits / 8, each plane rounded up to a byte."""
    return sum(_plane_bytes(count, plane) for plane in _PLANES[bits])


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [rows, count], uint8 below 2**bits, as bytes [rows, row_bytes]."""
    import torch

    rows, count = codes.shape
    packed = []
    rest = codes
    for plane in _PLANES[bits]:
        size = _plane_bytes(count, plane)
        part = torch.nn.functional.pad(rest & (2**plane - 1), (0, size * (8 // plane) - count))
        byte = torch.zeros((rows, size), dtype=torch.uint8, device=codes.device)
        for index, run in enumerate(part.split(size, dim=1) if size else ()):
            byte |= run << (index * plane)
        packed.append(byte)
        if plane < 8:
            rest = rest >> plane
    return torch.cat(packed, dim=1)


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The codes [rows, count], uint8, that `pack` packed."""
    codes = None
    start = shift = 0
    for plane in _PLANES[bits]:
        size = _plane_bytes(count, plane)
        part = _unpack_plane(packed[:, start : start + size], plane)[:, :count]
        codes = part if codes is None else codes.bitwise_or_(part << shift)
        start, shift = start + size, shift + plane
    assert codes is not None
    return codes


def _unpack_plane(plane_bytes: torch.Tensor, plane: int) -> torch.Tensor:
    """[rows, bytes * 8 / plane]: every code of one plane, those that fill up the last bytes included."""
    import torch

    if plane == 8:
        return plane_bytes
    rows, size = plane_bytes.shape
    per_byte = 8 // plane
    codes = torch.empty((rows, per_byte, size), dtype=torch.uint8, device=plane_bytes.device)
    for index in range(per_byte):
        torch.bitwise_right_shift(plane_bytes, index * plane, out=codes[:, index])
    return codes.bitwise_and_(2**plane - 1).view(rows, -1)


def _plane_bytes(count: int, plane: int) -> int:
    return -(-count * plane // 8)
