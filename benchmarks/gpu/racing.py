"""Seconds and memory of several models in one process that take turns, so that drift hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from sdcompress.evaluation.worker.process_meters import synchronize


@dataclass(frozen=True)
class Rounds:
    """How long a race is.

    Args:
        most: rounds at most.
        fewest: rounds that are taken whatever they take.
        runs: runs of each contender in a round, whose mean counts.
        seconds: no round begins after so many.
    """

    most: int
    fewest: int
    runs: int
    seconds: float


def race(
    contenders: Mapping[str, Callable[[], Any]],
    device: str,
    rounds: Rounds,
    save: Callable[[dict[str, list[float]]], None],
) -> None:
    """Take turns, A B C A B C. `save` is given the seconds of all rounds so far after each round, by contender."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    for number in range(rounds.most):
        if number >= rounds.fewest and time.perf_counter() - began > rounds.seconds:
            break
        for name, run in contenders.items():
            synchronize(device)
            start = time.perf_counter()
            for _ in range(rounds.runs):
                run()
            synchronize(device)
            seconds[name].append((time.perf_counter() - start) / rounds.runs)
        save(seconds)


def peak_bytes_of(run: Callable[[], Any], weights_bytes: int, device: str) -> int | None:
    """Return the most device memory of a run, in bytes: the weights, and what is allocated beside all that is loaded.

    Other contenders are in memory too, so it is not the process's peak. None where torch cannot count it.
    """
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    loaded = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return weights_bytes + torch.cuda.max_memory_allocated() - loaded


def summary(seconds: list[float], original: list[float]) -> dict[str, Any]:
    """Return median and range of the seconds, and of the ratios to the original's seconds of the same rounds."""
    ratios = [own / base for own, base in zip(seconds, original, strict=True)]
    return {
        "median_s": median(seconds),
        "range_s": [min(seconds), max(seconds)],
        "median_ratio": median(ratios),
        "range_ratio": [min(ratios), max(ratios)],
        "samples_s": seconds,
    }
