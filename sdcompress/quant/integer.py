"""Symmetric integer codes with one scale per output channel or per group of input channels, rounded to nearest.

Uniform symmetric quantization, eq. 2 of Nagel et al. 2021 (arXiv:2106.08295) with zero point 0: q = round(w / s),
clamped to [-(2^(b-1)-1), 2^(b-1)-1], w' = s q. The scale s = max|w| / (2^(b-1)-1) of the channel or group is rounded
*up* to float16, so that no code is clipped and |w - w'| <= s/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from sdcompress.quant.format import QuantizedTensor, check_finite, divisors_near

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantFormat

CHUNK = 2**22  # weights worked on at once
SMALLEST_SCALE = 2.0**-24  # float16's smallest positive number


def scale_shape(shape: tuple[int, ...], group_size: int | None) -> tuple[int, ...]:
    """[out] without groups, else [out, groups along the input channels]."""
    return (shape[0],) if group_size is None else (shape[0], shape[1] // group_size)


def group_problem(shape: tuple[int, ...], group_size: int | None, layer: str) -> str | None:
    """Why groups of `group_size` do not divide the input channels, naming sizes that do; None if they do."""
    if group_size is None or shape[1] % group_size == 0:
        return None
    usable = divisors_near(shape[1])
    *others, last = map(str, usable or [0])
    advice = f"use {' or '.join(filter(None, (', '.join(others), last)))}" if usable else "leave the layer out"
    return f"{group_size} does not divide {shape[1]} ({layer}); {advice}"


def round_to_nearest(
    weight: torch.Tensor, fmt: QuantFormat, largest_of: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> QuantizedTensor:
    """Codes as int8 whatever the format's bits (packing is another matter), scale as float16.

    weight: [out, in, ...]; codes: the same shape; scale: see `scale_shape`. `largest_of` gives, for rows of the weight,
    [rows, groups] of what the largest code stands for (max|w| unless given, and never less). Raises ValueError on NaN
    or Inf.
    """
    import torch

    top = 2 ** (fmt.bits - 1) - 1
    shape = tuple(weight.shape)
    codes = torch.empty(shape, dtype=torch.int8)
    scales = []
    for rows, out in zip(row_chunks(weight), row_chunks(codes), strict=True):
        grouped = _grouped(rows.float(), fmt.group_size)  # [rows, group, k]
        largest = (
            grouped.abs().amax(dim=2) if largest_of is None else largest_of(rows.float())
        )  # NaN where there is one
        if not bool(largest.isfinite().all()):
            check_finite(weight)
        exact = (largest / top).clamp_(min=SMALLEST_SCALE)
        scale = _rounded_up_to_half(exact)
        out.copy_((grouped / scale.float().unsqueeze(2)).round_().clamp_(-top, top).view(rows.shape))
        scales.append(scale)
    return QuantizedTensor(codes, torch.cat(scales).view(scale_shape(shape, fmt.group_size)), fmt, shape)


def dequantize(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """codes x scale in `dtype`; codes: [out, in, ...], scale: [out] or [out, groups]."""
    if scale.dim() == 1:
        return codes.to(dtype) * scale.to(dtype).view(-1, *[1] * (codes.dim() - 1))
    groups = _grouped(codes, codes.shape[1] // scale.shape[1])  # [out, group, k]
    return (groups.to(dtype) * scale.to(dtype).unsqueeze(2)).view(codes.shape)


def row_chunks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensor in slices of whole rows, about CHUNK weights each, so that working copies stay small."""
    return tensor.split(max(1, CHUNK // max(1, tensor[0].numel())))


def _grouped(weight: torch.Tensor, group_size: int | None) -> torch.Tensor:
    """[out, groups, weights of a group]; a convolution's kernel positions share their input channel's group."""
    if group_size is None:
        return weight.reshape(weight.shape[0], 1, -1)
    per_group = group_size * math.prod(weight.shape[2:])
    return weight.reshape(weight.shape[0], -1, per_group)


def _rounded_up_to_half(scale: torch.Tensor) -> torch.Tensor:
    import torch

    half = scale.to(torch.float16)
    too_small = half.float() < scale
    return torch.where(too_small, torch.nextafter(half, torch.full_like(half, torch.inf)), half)
