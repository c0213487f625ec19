"""The finalists of a search: which allocations are carried out and measured, and which of them wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sdcompress.errors import UserError
from sdcompress.searching.allocate import Allocated, allocate, unmeasured_place
from sdcompress.searching.result import Finalist, Scores
from sdcompress.searching.space import Choices, fixed_bytes
from sdcompress.searching.target import Target
from sdcompress.sources.source import Source

MARGIN_DB = 0.5  # how far above a wanted quality the predicted one must lie
NEXT_MARGIN_DB = 1.5  # how much further for each further finalist

Measure = Callable[[str, Allocated], Mapping[str, Any]]  # name, allocation -> `mean` and `interval_95` of the PSNR


def list_finalists(
    target: Target, scores: Scores, original_bytes: int, corrections: Mapping[str, float], first: Allocated, count: int
) -> Iterator[tuple[str, Allocated]]:
    """Yield at most `count` names and allocations: the solution, and others that trust the predictions less."""
    yield "predicted", first
    if target.objective == "size":
        for place in range(1, count):
            damage = first.damage * 10 ** (-place * NEXT_MARGIN_DB / 10)
            yield f"margin-{place}", allocate(scores, damage=damage, corrections=corrections)
        return
    if count > 1:
        yield "uncorrected", solve_target(target, scores, original_bytes, {})
    if count > 2:
        try:
            yield "3-bits-or-more", solve_target(target, scores, original_bytes, corrections, fewest_bits=3)
        except UserError:
            return  # the target needs 2 bits


def measure_finalists(
    candidates: Iterator[tuple[str, Allocated]], target: Target, original_bytes: int, measure: Measure
) -> tuple[Allocated, tuple[Finalist, ...]]:
    """Return the best finalist that meets the target, or the nearest to it, and all of them. Equal ones count once."""
    measured: list[tuple[Allocated, Finalist]] = []
    for name, found in candidates:
        if any(found.places == other.places for other, _ in measured):
            continue
        similarity = measure(name, found)
        quality, interval = similarity.get("mean"), similarity.get("interval_95")
        finalist = Finalist(
            name=name,
            size_bytes=found.size_bytes,
            psnr_db=quality,
            interval_95=None if interval is None else tuple(interval),
            meets=_meets(target, original_bytes, found, quality),
        )
        measured.append((found, finalist))
        if target.objective == "size" and finalist.meets:
            break  # the others are larger
    best, _ = max(measured, key=lambda each: _rank(target, *each))
    return best, tuple(finalist.model_copy(update={"chosen": found is best}) for found, finalist in measured)


def solve_target(
    target: Target, scores: Scores, original_bytes: int, corrections: Mapping[str, float], fewest_bits: int = 0
) -> Allocated:
    """Return the best allocation for the target.

    Raises:
        UserError: none reaches it.
    """
    limit = None if target.size is None else target.size.of(original_bytes)
    if target.objective == "size" and target.quality is not None:
        damage = 10 ** (-(target.quality.limit + MARGIN_DB) / 10)
        return allocate(scores, limit, damage, corrections, fewest_bits)
    return allocate(scores, limit, corrections=corrections, fewest_bits=fewest_bits)


def check_target(target: Target, source: Source, choices: Sequence[Choices]) -> None:
    """Raise UserError where the size is below what the formats give, or not below the original's."""
    if target.quality is not None and target.quality.name != "psnr_db":
        raise UserError(f"--quality {target.quality.text}: a search predicts psnr_db; name a gate on it")
    if target.size is None:
        return
    limit, original = target.size.of(source.weights_bytes), source.weights_bytes
    if limit >= original:
        raise UserError(
            f"--size {target.size.text}: the original's weights take {original / 1e6:,.2f} MB already; name less"
        )
    smallest = fixed_bytes(source, choices) + sum(
        min(each.weight_bytes) if each.measured else each.weight_bytes[unmeasured_place(each.labels, each.weight_bytes)]
        for each in choices
    )
    if limit < smallest:
        raise UserError(
            f"--size {target.size.text}: is {limit / 1e6:,.2f} MB, and the smallest that these formats give is "
            f"{smallest / 1e6:,.2f} MB ({smallest / original:.3f}x)"
        )


def _meets(target: Target, original_bytes: int, found: Allocated, quality: float | None) -> bool:
    small = target.size is None or found.size_bytes <= target.size.of(original_bytes)
    gate = target.quality
    return small and (gate is None or (quality is not None and gate.passes(quality)))


def _rank(target: Target, found: Allocated, finalist: Finalist) -> tuple[float, ...]:
    quality = math.inf if finalist.psnr_db is None else finalist.psnr_db
    if target.objective == "size" and finalist.meets:
        return (1, -found.size_bytes, quality)
    return (float(finalist.meets), quality, -found.size_bytes)
