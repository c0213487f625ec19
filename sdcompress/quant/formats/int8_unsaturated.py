"""int8-unsaturated: eight-bit codes that x86 CPUs without VNNI multiply by unsigned activations without overflow.

There, vpmaddubsw adds two products of an unsigned and a signed byte in 16 bits, and saturates. Codes of neighbouring
input channels whose sum stays within 128 cannot: 255 x 128 is below 2^15.
So the scale is the largest same-sign sum of a pair divided by 127, and not the largest weight: about half a bit
coarser, where the usual remedy, 7-bit weights, costs a whole bit. VNNI, AMX and ARM's dot products do not saturate;
there it is int8 with a coarser scale.

ONNX Runtime and OpenVINO both take the input channels in pairs, in their order. They differ in convolutions with an odd
number of input channels: ONNX Runtime pairs the last channel with the first one of the next kernel position, as
`largest_pair` does. OpenVINO pads each position to whole pairs, so that some of its pairs are others and may saturate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.errors import Problem
from sdcompress.quant.formats.symmetric import Symmetric
from sdcompress.sources.spec import CONVOLUTIONS, Layer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Int8Unsaturated(Symmetric):
    """int8 whose pairs of codes cannot overflow 16 bits; one scale for each output channel, no groups."""

    kinds = frozenset({"linear"}) | CONVOLUTIONS
    options = frozenset()
    roundings = frozenset({"nearest"})  # with other codes or scales, a pair could saturate
    sums_fit_16_bits = True

    def problem(self, layer: Layer, target: str = "torch") -> Problem | None:
        if self.group_size is None:
            return None
        return Problem("group_size", "is per output channel; leave group_size out")

    def largest(self, weight: torch.Tensor, grouped: torch.Tensor) -> torch.Tensor:
        return largest_pair(weight)


def largest_pair(rows: torch.Tensor) -> torch.Tensor:
    """Return the largest sum of two neighbouring input channels' positive, or negative, weights, [rows, 1].

    Args:
        rows: [rows, in], or [rows, in, kh, kw], where the channels of each kernel position are neighbours.

    Examples:
        >>> import torch
        >>> largest_pair(torch.tensor([[1.0, 2.0, -3.0, 0.5, 2.5]]))
        tensor([[3.]])
    """
    import torch

    flat = rows if rows.dim() == 2 else rows.permute(0, 2, 3, 1).flatten(1)  # [rows, kh*kw*in]
    pairs = torch.nn.functional.pad(flat, (0, flat.shape[1] % 2)).unflatten(1, (-1, 2))
    sums = torch.stack((pairs.clamp(min=0).sum(2), (-pairs).clamp(min=0).sum(2)))
    return sums.amax(dim=(0, 2)).unsqueeze(1)


FORMATS = (Int8Unsaturated("int8-unsaturated", 8),)
