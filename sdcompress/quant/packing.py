"""Codes of 2 to 8 bits packed tightly into bytes, row by row.

A row's codes are split into planes of 4, 2 and 1 bits (3 bits: the lower 2 and the upper 1). A plane of p bits holds
8/p codes to a byte: byte j holds codes j, j + m, j + 2m, ... of the row, m being the plane's bytes, so that unpacking
is a shift and a mask of contiguous runs. Each row starts at a new byte, so that rows can be read separately.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}  # lowest bits first


def row_bytes(count: int, bits: int) -> int:
    """Return the bytes of a row of `count` codes: count * bits / 8, with each plane rounded up to a byte.

    Examples:
        >>> row_bytes(64, 3), row_bytes(5, 3)
        (24, 3)
    """
    return sum(_plane_bytes(count, plane) for plane in PLANES[bits])


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the codes as bytes, [rows, row_bytes] uint8.

    Args:
        codes: [rows, count] uint8, each below 2**bits.
        bits: 1 to 8.

    Examples:
        >>> import torch
        >>> codes = torch.tensor([[1, 2, 3, 0]], dtype=torch.uint8)
        >>> pack(codes, 4), unpack(pack(codes, 4), 4, 4).tolist()
        (tensor([[49,  2]], dtype=torch.uint8), [[1, 2, 3, 0]])
    """
    import torch

    rows, count = codes.shape
    packed = []
    rest = codes
    for plane in PLANES[bits]:
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
    """Return the codes that `pack` packed, [rows, count] uint8."""
    codes = None
    start = shift = 0
    for plane in PLANES[bits]:
        size = _plane_bytes(count, plane)
        part = _unpack_plane(packed[:, start : start + size], plane)[:, :count]
        codes = part if codes is None else codes.bitwise_or_(part << shift)
        start, shift = start + size, shift + plane
    assert codes is not None
    return codes


def _unpack_plane(plane_bytes: torch.Tensor, plane: int) -> torch.Tensor:
    """Return all codes of one plane, those that fill up the last bytes included: [rows, bytes * 8 / plane]."""
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
