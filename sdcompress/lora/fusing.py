"""The arithmetic of a LoRA: W + weight * scale * up @ down (arXiv:2106.09685, section 4.1), in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sdcompress.files.torch_tensors import read_tensor
from sdcompress.lora.file import LowRank


def difference(update: LowRank, shape: tuple[int, ...]) -> torch.Tensor:
    """What the update adds to a weight of that shape, in float32, the file's own weight in a recipe apart."""
    down, up = read_tensor(update.down).float(), read_tensor(update.up).float()
    up = up.flatten(1)  # [out, rank]
    if update.mid is None:
        product = up @ down.flatten(1)  # [out, in*kh*kw]
    else:  # LoCon's with a kernel of its own: https://github.com/KohakuBlueleaf/LyCORIS, rebuild_tucker
        mid = read_tensor(update.mid).float()  # [rank, rank, kh, kw]
        product = torch.einsum("or,rskl,si->oikl", up, mid, down.flatten(1))
    return product.mul_(update.scale).reshape(shape)


def fused(tensor: torch.Tensor, updates: Sequence[tuple[float, LowRank]]) -> torch.Tensor:
    """The tensor with every update, times its own weight, added to it in float32."""
    total = tensor.to(torch.float32, copy=True)
    for weight, update in updates:
        total.add_(difference(update, tuple(tensor.shape)), alpha=weight)
    return total
