"""What the trainings share: a time budget, averaged weights, atomic checkpoints, a log line."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

import torch

LONGEST_STEP_S = 15.0  # more than this is a pause (SIGSTOP), which the budget does not pay for


class TimeBudget:
    """Net training time, and the learning rate's factor (warm-up, then cosine to nearly zero at the end)."""

    def __init__(self, minutes: float, warmup_s: float = 30.0, elapsed_s: float = 0.0) -> None:
        self.total_s, self.warmup_s, self.elapsed_s = minutes * 60.0, warmup_s, elapsed_s
        self._last = time.monotonic()

    def tick(self) -> float:
        """Count the time since the last call; the fraction of the budget used."""
        now = time.monotonic()
        self.elapsed_s += min(now - self._last, LONGEST_STEP_S)
        self._last = now
        return self.elapsed_s / self.total_s

    def learning_rate_factor(self) -> float:
        fraction = min(self.elapsed_s / self.total_s, 1.0)
        warmup = min(1.0, 0.02 + self.elapsed_s / self.warmup_s)
        return warmup * (0.02 + 0.49 * (1 + math.cos(math.pi * fraction)))


class Average:
    """Exponential moving average of a model's parameters, with a decay that starts low."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.parameters = [parameter.detach().clone() for parameter in model.parameters()]

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.parameters, [p.detach() for p in model.parameters()], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: torch.nn.Module) -> None:
        for target, source in zip(model.parameters(), self.parameters, strict=True):
            target.copy_(source)

    def state(self) -> dict:
        return {"updates": self.updates, "parameters": self.parameters}

    def load(self, state: dict) -> None:
        self.updates = state["updates"]
        for target, source in zip(self.parameters, state["parameters"], strict=True):
            target.copy_(source)


def save_atomically(value: object, path: Path) -> None:
    """Write a checkpoint so that a reader sees the old or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict | None:
    """The checkpoint, or None when there is none yet."""
    return torch.load(path, map_location="cpu", weights_only=False) if path.exists() else None


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def report(step: int, budget: TimeBudget, **figures: float) -> None:
    """One progress line on stderr: step, time used and left, figures."""
    left_s = max(budget.total_s - budget.elapsed_s, 0)
    text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    clock = time.strftime("%H:%M:%S")
    spent = f"{budget.elapsed_s / 60:.1f} min, {left_s / 60:.1f} left"
    print(f"{clock} step {step}  {spent}  {text}", file=sys.stderr, flush=True)
