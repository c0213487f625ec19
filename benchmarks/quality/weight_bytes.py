"""Bytes of a component's weights as its state dict would be stored: codes, scales, palettes, and what stays in float.

The same rule for everybody: a weight that is left in float counts as float16, and whatever a library stores beside
its codes counts in the dtype in which that library stores it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FLOAT_BYTES = 2


def stored_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name -> plain tensor of all that the module's state dict holds, tensor subclasses taken apart, ties once."""
    plain: dict[str, torch.Tensor] = {}
    for name, value in module.state_dict().items():
        plain.update(_take_apart(name, value))
    seen: set[tuple[object, ...]] = set()
    distinct = {}
    for name, tensor in plain.items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        distinct[name] = tensor
    return distinct


def weight_bytes(module: torch.nn.Module, originals: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of the module's weights; originals: name -> shape of the parameters it had before it was quantized."""
    return sum(
        tensor.numel() * (FLOAT_BYTES if is_left_alone(name, tensor, originals) else tensor.element_size())
        for name, tensor in stored_tensors(module).items()
    )


def is_left_alone(name: str, tensor: torch.Tensor, originals: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the tensor is a parameter as it was: still a float, under its name, in its shape."""
    return tensor.is_floating_point() and tensor.element_size() >= FLOAT_BYTES and originals.get(name) == tensor.shape


def left_alone(module: torch.nn.Module, originals: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Layer -> number of weights of every matrix, kernel or table that is still in float."""
    return {
        name.removesuffix(".weight"): tensor.numel()
        for name, tensor in stored_tensors(module).items()
        if name.endswith(".weight") and tensor.dim() > 1 and is_left_alone(name, tensor, originals)
    }


def spare_bytes(module: torch.nn.Module) -> int:
    """Bytes by which codes that torchao keeps one a byte (its `target_dtype` says how many bits they need) shrink
    when they are packed."""
    spare = 0
    for value in module.state_dict().values():
        target = getattr(value, "target_dtype", None)
        if target is not None:
            bits = int(str(target).removeprefix("torch.int"))
            spare += value.qdata.numel() - math.ceil(value.qdata.numel() * bits / 8)
    return spare


def _take_apart(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    if not hasattr(type(value), "__tensor_flatten__"):
        return {name: value}
    names, _ = value.__tensor_flatten__()  # type: ignore[attr-defined]
    parts: dict[str, torch.Tensor] = {}
    for inner in names:
        parts.update(_take_apart(f"{name}.{inner}", getattr(value, inner)))
    return parts
