"""Allocations: the solver applied to scores, and what it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdcompress.errors import UserError
from sdcompress.quant.registry import from_label
from sdcompress.searching.result import Scores
from sdcompress.searching.solver import Option, solve
from sdcompress.searching.space import KEPT, UNMEASURED

CURVE_POINTS = 12


@dataclass(frozen=True)
class Allocated:
    """The chosen candidate of every layer.

    Args:
        places: of the chosen candidates, for each layer of the scores.
        size_bytes: of the whole pipeline's weights.
        damage: predicted, with corrections.
        gap: relative distance to the solver's bound.
    """

    places: tuple[int, ...]
    size_bytes: int
    damage: float
    gap: float

    def labels(self, scores: Scores) -> dict[str, str]:
        """Return component:layer -> label."""
        return {
            f"{each.component}:{each.layer}": each.labels[place]
            for each, place in zip(scores.layers, self.places, strict=True)
        }


def allocate(
    scores: Scores,
    limit_bytes: float | None = None,
    damage: float | None = None,
    corrections: Mapping[str, float] | None = None,
    fewest_bits: int = 0,
) -> Allocated:
    """Return the least damage within the bytes, or the fewest bytes within the damage.

    Args:
        scores: of the candidates.
        limit_bytes: of the whole pipeline; None to minimize them.
        damage: the largest allowed; None to minimize it.
        corrections: see `correction`.
        fewest_bits: candidates with fewer bits are left out.

    Raises:
        UserError: the bytes are fewer than the smallest pipeline's.
    """
    known = corrections or {}
    options, kept = [], []
    for layer in scores.layers:
        allowed = [
            place
            for place, label in enumerate(layer.labels)
            if layer.damages is not None and (label == KEPT or from_label(label).bits >= fewest_bits)
        ] or [unmeasured_place(layer.labels, layer.weight_bytes)]
        damages = layer.damages or (0.0,) * len(layer.labels)
        factors = [correction(known, layer.component, label) for label in layer.labels]
        options.append([Option(factors[p] * damages[p], {"bytes": layer.weight_bytes[p]}) for p in allowed])
        kept.append(allowed)
    smallest = scores.fixed_bytes + sum(min(one.costs["bytes"] for one in each) for each in options)
    limits = {}
    if limit_bytes is not None:
        if limit_bytes < smallest:
            raise UserError(
                f"--size: {limit_bytes / 1e6:,.2f} MB cannot be reached; the smallest that these formats give is "
                f"{smallest / 1e6:,.2f} MB"
            )
        limits["bytes"] = limit_bytes - scores.fixed_bytes
    if damage is not None:
        limits["damage"] = damage
    solution = solve(options, limits, minimize="bytes" if damage is not None else None)
    places = tuple(each[one] for each, one in zip(kept, solution.chosen, strict=True))
    size = sum(layer.weight_bytes[place] for layer, place in zip(scores.layers, places, strict=True))
    return Allocated(places, scores.fixed_bytes + size, solution.damage, solution.gap)


def unmeasured_place(labels: Sequence[str], weight_bytes: Sequence[int]) -> int:
    """Return the candidate of a layer on which no picture depends: int8, or the most bits below float16."""
    if UNMEASURED in labels:
        return labels.index(UNMEASURED)
    quantized = [place for place, label in enumerate(labels) if label != KEPT]
    return max(quantized, key=lambda place: weight_bytes[place]) if quantized else 0


def predict(scores: Scores, labels: Mapping[str, str], corrections: Mapping[str, float] | None = None) -> float:
    """Return the predicted damage of an allocation, component:layer -> label."""
    total = 0.0
    for layer in scores.layers:
        label = labels.get(f"{layer.component}:{layer.layer}", KEPT)
        if layer.damages is not None and label != KEPT:
            damage = layer.damages[layer.labels.index(label)]
            total += correction(corrections or {}, layer.component, label) * damage
    return total


def correction(corrections: Mapping[str, float], component: str, label: str) -> float:
    """Return the factor by which measured damage exceeds the predicted.

    Args:
        corrections: `component:label` or `component` -> factor; a label that was not measured has the factor of the
            measured one nearest in bits.
    """
    if label == KEPT:
        return 1.0
    measured = {key.partition(":")[2]: factor for key, factor in corrections.items() if key.startswith(f"{component}:")}
    if not measured:
        return corrections.get(component, 1.0)
    bits = from_label(label).bits
    return measured[min(measured, key=lambda other: (other != label, abs(from_label(other).bits - bits), other))]


def trade_off(scores: Scores, corrections: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """Return size and predicted damage of the best allocations from the smallest size to the largest."""
    sizes = [
        [layer.weight_bytes[place] for place in range(len(layer.labels))] if layer.damages else
        [layer.weight_bytes[unmeasured_place(layer.labels, layer.weight_bytes)]]
        for layer in scores.layers
    ]  # fmt: skip
    low, high = (scores.fixed_bytes + sum(of(each) for each in sizes) for of in (min, max))
    points: list[tuple[int, float]] = []
    for place in range(CURVE_POINTS):
        found = allocate(scores, low + (high - low) * place / (CURVE_POINTS - 1), corrections=corrections)
        # Where the solver stops within its gap, more bytes may give no less damage.
        if not points or (found.size_bytes > points[-1][0] and found.damage < points[-1][1]):
            points.append((found.size_bytes, found.damage))
    return tuple(points)
