"""Statistics of paired samples: bootstrap intervals, medians and quantiles. Plain numpy on plain lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 20_240_229  # any fixed number: the same samples must give the same interval
CHUNK = 2_000_000  # indices drawn at once, 16 MB


def mean_interval(values: Sequence[float]) -> list[float] | None:
    """The 95 % percentile bootstrap interval of the mean (Efron 1979); None for fewer than two values."""
    return _interval([values], lambda columns: columns[0].mean(axis=1))


def median_ratio_interval(original: Sequence[float], compressed: Sequence[float]) -> list[float] | None:
    """The 95 % paired bootstrap interval of median(compressed) / median(original); None for fewer than two pairs."""
    return _interval([original, compressed], lambda both: np.median(both[1], axis=1) / np.median(both[0], axis=1))


def _interval(
    columns: Sequence[Sequence[float]], statistic: Callable[[list[np.ndarray]], np.ndarray]
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
    tail = 100 * (1 - CONFIDENCE) / 2
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
