"""Statistics of paired samples: bootstrap intervals, medians and quantiles, of plain lists.

Percentile intervals of few samples are too narrow, by a factor of about z sqrt((n-1)/n) / t(n-1). So the percentiles
move outwards until the interval of a normal sample is as wide as Student's: the "expanded percentile interval" of
Hesterberg 2015, arXiv:1411.5279.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 20_240_229  # any fixed number: the same samples must give the same interval
BATCH_INDICES = 2_000_000  # drawn at once, 16 MB


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Return the bootstrap interval of the mean, of 95 % by default; None for fewer than two values."""
    return _interval([values], np.mean, confidence)


def median_ratio_interval(
    original: Sequence[float], compressed: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Return the paired bootstrap interval of median(compressed) / median(original); None for fewer than two pairs."""

    def ratio(before: np.ndarray, after: np.ndarray, axis: int = -1) -> Any:
        return np.median(after, axis=axis) / np.median(before, axis=axis)

    return _interval([original, compressed], ratio, confidence)


def expanded_tail(count: int, confidence: float) -> float:
    """Return the share to leave out on each side, so that `count` normal samples get Student's interval."""
    from scipy.special import ndtr, stdtrit

    half_width = math.sqrt(count / (count - 1)) * stdtrit(count - 1, (1 + confidence) / 2)
    return float(ndtr(-half_width))


def _interval(
    columns: Sequence[Sequence[float]], statistic: Callable[..., Any], confidence: float
) -> tuple[float, float] | None:
    """Return the expanded percentile interval of `statistic`; resampling keeps the rows of `columns` together."""
    count = len(columns[0])
    if count < 2:
        return None
    from scipy.stats import bootstrap  # takes a second to import

    found = bootstrap(
        columns,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_INDICES // count),
        confidence_level=1 - 2 * expanded_tail(count, confidence),
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def mean(values: Sequence[float]) -> float | None:
    """Return the arithmetic mean; None for no values."""
    return float(np.mean(values)) if len(values) else None


def median(values: Sequence[float]) -> float | None:
    """Return the median; None for no values."""
    return float(np.median(values)) if len(values) else None


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return the 5th, 50th and 95th percentile, linear between samples; None for no values."""
    if not len(values):
        return None
    p05, p50, p95 = np.percentile(np.asarray(values, dtype=np.float64), [5, 50, 95])
    return {"p05": float(p05), "p50": float(p50), "p95": float(p95)}
