"""The arithmetic of a LoRA: W + weight * scale * up @ down (arXiv:2106.09685, section 4.1), in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sdcompress.files.torch_tensors import read_tensor
from sdcompress.lora.file import LowRank


def difference(update: LowRank, shape: tuple[int, ...]) -> torch.Tensor:
    """Return what the update adds to a weight, in float32 and the shape given, for a weight of 1 in the recipe."""
    down, up = read_tensor(update.down).float(), read_tensor(update.up).float()
    up = up.flatten(1)  # [out, rank]
    if update.mid is None:
        product = up @ down.flatten(1)  # [out, in*kh*kw]
    else:  # LoCon with a kernel in the middle: https://github.com/KohakuBlueleaf/LyCORIS, rebuild_tucker
        mid = read_tensor(update.mid).float()  # [rank, rank, kh, kw]
        product = torch.einsum("or,rskl,si->oikl", up, mid, down.flatten(1))
    return product.mul_(update.scale).reshape(shape)


def fused(tensor: torch.Tensor, updates: Sequence[tuple[float, LowRank]]) -> torch.Tensor:
    """Return the tensor with every update added to it, in float32.

    Args:
        tensor: the weight, [out, in] or [out, in, kh, kw], of any floating-point type.
        updates: weight in the recipe, and update.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from safetensors.torch import save_file
        >>> from sdcompress.lora.file import open_lora
        >>> from sdcompress.sources.spec import ComponentSpec, parameter
        >>> weights = {"q_proj.weight": parameter((2, 2), "F32")}
        >>> spec = ComponentSpec("text_encoder", "transformers", "CLIPTextModel", {}, weights)
        >>> halves = {"lora_A": torch.ones(1, 2), "lora_B": torch.ones(2, 1)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "lora.safetensors")
        ...     save_file({f"text_encoder.q_proj.{name}.weight": half for name, half in halves.items()}, file)
        ...     fused(torch.eye(2), [(0.5, open_lora(file, spec).updates["q_proj"])])
        tensor([[1.5000, 0.5000],
                [0.5000, 1.5000]])
    """
    total = tensor.to(torch.float32, copy=True)
    for weight, update in updates:
        total.add_(difference(update, tuple(tensor.shape)), alpha=weight)
    return total
