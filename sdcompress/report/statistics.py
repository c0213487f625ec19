"""Statistics of paired samples: bootstrap intervals, medians and quantiles. Plain numpy on plain lists.

Plain percentile intervals of few samples are too narrow, by a factor of about z sqrt((n-1)/n) / t(n-1). So the
percentiles are moved outwards until the interval of a normal sample is as wide as Student's: the "expanded percentile
interval" of Hesterberg 2015, arXiv:1411.5279.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 20_240_229  # any fixed number: the same samples must give the same interval
CHUNK = 2_000_000  # indices drawn at once, 16 MB


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> list[float] | None:
    """The expanded percentile bootstrap interval of the mean, of 95 % by default; None for fewer than two values."""
    return _interval([values], lambda columns: columns[0].mean(axis=1), confidence)


def median_ratio_interval(original: Sequence[float], compressed: Sequence[float]) -> list[float] | None:
    """The 95 % paired bootstrap interval of median(compressed) / median(original); None for fewer than two pairs."""

    def ratio(both: list[np.ndarray]) -> np.ndarray:
        return np.median(both[1], axis=1) / np.median(both[0], axis=1)

    return _interval([original, compressed], ratio, CONFIDENCE)


def expanded_tail(rows: int, confidence: float) -> float:
    """The share of resampled means to leave out on each side, so that `rows` normal samples get Student's interval."""
    half_width = math.sqrt(rows / (rows - 1)) * student_quantile((1 + confidence) / 2, rows - 1)
    return NormalDist().cdf(-half_width)


@cache
def student_quantile(probability: float, degrees: int) -> float:
    """The quantile (of a probability over 1/2) of Student's t distribution, to 1e-9, by bisection of its integral."""
    low, high = 0.0, 1.0
    while _student_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, degrees: int) -> float:
    """P(T <= t) for t > 0. With t = sqrt(degrees) tan(angle) the density is cos(angle)^(degrees - 1): smooth."""
    angle = math.atan(t / math.sqrt(degrees))
    points, weights = np.polynomial.legendre.leggauss(200)
    inside = (angle / 2) * float(weights @ np.cos(angle / 2 * (points + 1)) ** (degrees - 1))
    log_constant = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(math.pi)
    return 0.5 + math.exp(log_constant) * inside


def _interval(
    columns: Sequence[Sequence[float]], statistic: Callable[[list[np.ndarray]], np.ndarray], confidence: float
) -> list[float] | None:
    """Resamples the rows of `columns` together, which keeps pairs paired; `statistic` sees [resamples, rows] each."""
    data = [np.asarray(column, dtype=np.float64) for column in columns]
    rows = len(data[0])
    if rows < 2:
        return None
    generator = np.random.default_rng(SEED)
    found = []
    left = RESAMPLES
    while left:
        count = min(left, max(1, CHUNK // rows))
        picks = generator.integers(0, rows, size=(count, rows))  # [resamples, rows]
        found.append(statistic([column[picks] for column in data]))
        left -= count
    tail = 100 * expanded_tail(rows, confidence)
    low, high = np.percentile(np.concatenate(found), [tail, 100 - tail])
    return [float(low), float(high)]


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None for no values."""
    return float(np.mean(values)) if len(values) else None


def median(values: Sequence[float]) -> float | None:
    """The median; None for no values."""
    return float(np.median(values)) if len(values) else None


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """The 5th, 50th and 95th percentile, linear between samples; None for no values."""
    if not len(values):
        return None
    p05, p50, p95 = np.percentile(np.asarray(values, dtype=np.float64), [5, 50, 95])
    return {"p05": float(p05), "p50": float(p50), "p95": float(p95)}
