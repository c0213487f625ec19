"""Which samples count as pairs, and the mean of each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SIDES = ("original", "compressed")


def shown_pairs(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The samples of which the safety checker blocked neither side: a black square says nothing about quality."""
    return [sample for sample in samples if not any(sample[side]["blocked"] for side in SIDES)]


def scored_pairs(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The shown pairs that have CLIP scores."""
    return [s for s in shown_pairs(samples) if all(s[side]["clip_score"] is not None for side in SIDES)]


def by_prompt(samples: Sequence[Mapping[str, Any]], values: Sequence[float]) -> list[float]:
    """The mean value of each prompt: seeds of one prompt are no independent samples."""
    groups: dict[str, list[float]] = {}
    for sample, value in zip(samples, values, strict=True):
        groups.setdefault(sample["prompt"], []).append(value)
    return [sum(group) / len(group) for group in groups.values()]


def all_identical(entry: Mapping[str, Any]) -> bool:
    """Whether every picture of a redrawn or swapped pipeline is the original's to the pixel: its PSNR is infinite."""
    return bool(entry.get("pictures")) and entry.get("identical") == entry["pictures"]
