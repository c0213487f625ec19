"""The arithmetic of a LoRA: W + weight * scale * up @ down (arXiv:2106.09685, section 4.1), in float32."""

from __future__ import annotations

import torch

from sdcompress.backends.torch.dtypes import TORCH_DTYPE
from sdcompress.lora.file import LowRank
from sdcompress.safetensors_file import TensorRange, read_bytes


def difference(update: LowRank, shape: tuple[int, ...]) -> torch.Tensor:
    """What the update adds to a weight of that shape, in float32, the file's own weight in a recipe apart."""
    down, up = _read(update.down), _read(update.up)
    up = up.flatten(1)  # [out, rank]
    if update.mid is None:
        product = up @ down.flatten(1)  # [out, in*kh*kw]
    else:  # LoCon's with a kernel of its own: https://github.com/KohakuBlueleaf/LyCORIS, rebuild_tucker
        mid = _read(update.mid)  # [rank, rank, kh, kw]
        product = torch.einsum("or,rskl,si->oikl", up, mid, down.flatten(1))
    return update.scale * product.reshape(shape)


def _read(where: TensorRange) -> torch.Tensor:
    return torch.frombuffer(read_bytes(where), dtype=TORCH_DTYPE[where.dtype]).view(where.shape).float()
