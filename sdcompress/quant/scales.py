"""Scales as they are stored: float16, or 8 bits and a float16 step for each output channel (double quantization).

QLoRA (arXiv:2305.14314), section 3, quantizes the scales of a 4-bit format themselves. Here a row's scales are
multiples 1 .. 255 of a step that its largest scale defines, or +-1 .. 127 where scales may be negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sdcompress.sources.spec import TensorSpec

if TYPE_CHECKING:
    import torch

SMALLEST_SCALE = 2.0**-24  # float16's smallest positive number
LARGEST_SCALE = 65504.0  # float16's largest number
LEVELS = 255
SIGNED_LEVELS = 127


def specs(shape: tuple[int, ...], scale_bits: int, signed: bool = False) -> dict[str, TensorSpec]:
    """Return the specs of the parts that hold scales of that shape [out, ...], by name.

    Args:
        shape: of the scales.
        scale_bits: 16 or 8.
        signed: whether scales may be negative.
    """
    if scale_bits == 16:
        return {"scale": TensorSpec(shape, "F16", 0)}
    return {"scale": TensorSpec(shape, "I8" if signed else "U8", 0), "scale_step": TensorSpec(shape[:1], "F16", 0)}


def store(
    exact: torch.Tensor, shape: tuple[int, ...], scale_bits: int, up: bool, signed: bool = False
) -> dict[str, torch.Tensor]:
    """Return the parts that hold scales, by name.

    Args:
        exact: the scales, [rows, groups] float32.
        shape: in which they are stored, [out, ...]; its first entry may differ from the rows given.
        scale_bits: 16 or 8.
        up: round away from 0, so that nothing is clipped that the exact scales do not clip; else to nearest.
        signed: whether scales may be negative.

    Examples:
        >>> import torch
        >>> store(torch.tensor([[0.51, 1.02]]), (1, 2), scale_bits=8, up=False)["scale"]
        tensor([[127, 255]], dtype=torch.uint8)
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
    """Return the scales that the parts from `store` stand for, [rows, groups] float32."""
    import torch

    scale = value(parts["scale"], parts.get("scale_step"), torch.float32)
    return scale.reshape(scale.shape[0], -1)


def value(scale: torch.Tensor, step: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return the scales in `dtype`, in the shape in which they are stored.

    Args:
        scale: as stored, [out, ...].
        step: [out], where scales have 8 bits.
    """
    if step is None:
        return scale.to(dtype)
    return scale.to(dtype) * step.to(dtype).view(-1, *[1] * (scale.dim() - 1))


def rounded_up_to_half(scale: torch.Tensor) -> torch.Tensor:
    """Return the smallest float16 that is not below each value.

    Examples:
        >>> import torch
        >>> float(rounded_up_to_half(torch.tensor(1.0001)))
        1.0009765625
    """
    import torch

    half = scale.to(torch.float16)
    too_small = half.float() < scale
    return torch.where(too_small, torch.nextafter(half, torch.full_like(half, torch.inf)), half)
