"""Scales as they are stored: float16, or 8 bits and a float16 step for each output channel (double quantization).

QLoRA (arXiv:2305.14314), section 3: the scales of a 4-bit format are quantized themselves. Here a row's scales are
multiples 1 .. 255 of a step that its largest scale defines, or +-1 .. 127 where they may be negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sdcompress.sources.spec import TensorSpec

if TYPE_CHECKING:
    import torch

SMALLEST_SCALE = 2.0**-24  # float16's smallest positive number
LARGEST_SCALE = 65504.0  # and its largest
LEVELS = 255
SIGNED_LEVELS = 127


def specs(shape: tuple[int, ...], scale_bits: int, signed: bool = False) -> dict[str, TensorSpec]:
    """Part of QuantizedTensor -> spec of the stored scales of that shape; `signed`: whether they may be negative."""
    if scale_bits == 16:
        return {"scale": TensorSpec(shape, "F16", 0)}
    return {"scale": TensorSpec(shape, "I8" if signed else "U8", 0), "scale_step": TensorSpec(shape[:1], "F16", 0)}


def store(
    exact: torch.Tensor, shape: tuple[int, ...], scale_bits: int, up: bool, signed: bool = False
) -> dict[str, torch.Tensor]:
    """The parts that hold scales [rows, groups], given the shape they are stored in; `signed` as in `specs`.

    up: rounded away from 0, so that nothing is clipped that the exact scales do not clip; else to nearest.
    """
    import torch

    size = exact.abs().clamp_(SMALLEST_SCALE, LARGEST_SCALE)
    sign = torch.where(exact < 0, -1.0, 1.0)
    if scale_bits == 16:
        half = rounded_up_to_half(size) if up else size.half()
        return {"scale": (half * sign.half()).view(exact.shape[0], *shape[1:])}
    most = SIGNED_LEVELS if signed else LEVELS
    step = rounded_up_to_half((size.amax(dim=1) / most).clamp_(min=SMALLEST_SCALE))  # [rows]
    multiples = size / step.float().unsqueeze(1)
    codes = (multiples.ceil() if up else multiples.round()).clamp_(1, most).mul_(sign)
    stored = codes.to(torch.int8 if signed else torch.uint8)
    return {"scale": stored.view(exact.shape[0], *shape[1:]), "scale_step": step}


def fitted(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """[rows, groups] float32: the scales that the parts from `store` stand for."""
    import torch

    scale = value(parts["scale"], parts.get("scale_step"), torch.float32)
    return scale.reshape(scale.shape[0], -1)


def value(scale: torch.Tensor | None, step: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """The scales that their stored parts stand for in `dtype`, in the shape they are stored in."""
    assert scale is not None
    if step is None:
        return scale.to(dtype)
    return scale.to(dtype) * step.to(dtype).view(-1, *[1] * (scale.dim() - 1))


def rounded_up_to_half(scale: torch.Tensor) -> torch.Tensor:
    """The least float16 that is not below each value."""
    import torch

    half = scale.to(torch.float16)
    too_small = half.float() < scale
    return torch.where(too_small, torch.nextafter(half, torch.full_like(half, torch.inf)), half)
