"""Low-rank updates of weights (LoRA, arXiv:2106.09685), which are trained instead of the weights and then added."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize


class LowRankUpdate(nn.Module):
    """weight + up @ down, where a kernel's positions count as input columns. At first, up is zero."""

    def __init__(self, weight: torch.Tensor, rank: int, generator: torch.Generator):
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        rank = min(rank, rows, columns)
        down = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.down = nn.Parameter(down.to(weight.device))  # [rank, in*kh*kw]
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))  # [out, rank]

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add_adapters(model: nn.Module, rank: int, seed: int) -> None:
    """Freeze the model, and give each linear layer and convolution a low-rank update to train."""
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            update = LowRankUpdate(module.weight.detach(), rank, generator)
            parametrize.register_parametrization(module, "weight", update)


def merge_adapters(model: nn.Module) -> None:
    """Add each update to its weight and remove the update."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
