"""Distillation losses of a denoiser (BK-SDM, arXiv:2305.15798, equations 3 and 4); they need no pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def stages_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a UNet's down, mid and up blocks. Features are compared at their ends."""
    names = [f"{side}.{index}" for side in ("down_blocks", "up_blocks") for index in range(len(getattr(model, side)))]
    return (*names, "mid_block") if getattr(model, "mid_block", None) is not None else tuple(names)


@contextmanager
def record_features(model: nn.Module, stages: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield stage -> its last output, which is updated while in the context."""
    features: dict[str, torch.Tensor] = {}

    def recorder(stage: str) -> Any:
        def note(module: nn.Module, arguments: Any, output: Any) -> None:
            features[stage] = output[0] if isinstance(output, tuple) else output

        return note

    hooks = [model.get_submodule(stage).register_forward_hook(recorder(stage)) for stage in stages]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


def output_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of the predictions (equation 3)."""
    return (student - teacher).square().mean()


def feature_loss(student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean over stages of squared differences (equation 4), as shares of the teacher's variance there."""
    shares = []
    for stage, wanted in teacher.items():
        wanted = wanted.float()
        shares.append((student[stage].float() - wanted).square().mean() / wanted.var().clamp_min(1e-12))
    return torch.stack(shares).mean()
