"""Bootstrap intervals against a slow reference and against theory."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import numpy as np
import pytest

from sdcompress.report import statistics

# Student's t at 97.5 %, from a printed table.
STUDENT = {1: 12.7062, 2: 4.3027, 7: 2.3646, 20: 2.0860, 24: 2.0639, 30: 2.0423, 120: 1.9799}


def _tail(rows: int) -> float:
    """Hesterberg 2015, arXiv:1411.5279: the normal probability beyond sqrt(n / (n - 1)) t(n - 1)."""
    return NormalDist().cdf(-math.sqrt(rows / (rows - 1)) * STUDENT[rows - 1])


def _slow_mean_interval(values: list[float], resamples: int = 4000) -> tuple[float, float]:
    """The expanded percentile bootstrap with the standard library alone."""
    generator = random.Random(1)
    means = sorted(sum(generator.choices(values, k=len(values))) / len(values) for _ in range(resamples))
    tail = _tail(len(values))
    return means[int(tail * resamples)], means[int((1 - tail) * resamples)]


def _slow_ratio_interval(original: list[float], compressed: list[float], resamples: int = 4000) -> tuple[float, float]:
    generator = random.Random(1)
    middle = lambda values: sorted(values)[len(values) // 2]  # noqa: E731 (odd counts only)
    ratios = []
    for _ in range(resamples):
        picks = generator.choices(range(len(original)), k=len(original))
        ratios.append(middle([compressed[i] for i in picks]) / middle([original[i] for i in picks]))
    ratios.sort()
    tail = _tail(len(original))
    return ratios[int(tail * resamples)], ratios[int((1 - tail) * resamples)]


def test_the_tail_is_student_s() -> None:
    for rows in (count + 1 for count in STUDENT):
        assert statistics.expanded_tail(rows, 0.95) == pytest.approx(_tail(rows), rel=1e-3)  # printed digits


def test_few_normal_samples_are_covered_as_often_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 2000)
    generator = np.random.default_rng(3)
    for rows in (6, 8, 16):
        samples = generator.normal(0, 1, (400, rows))
        inside = 0
        for each in samples.tolist():
            low, high = statistics.mean_interval(each)
            inside += low <= 0 <= high
        # 95 % of 400 is 380, with a standard error of 4.4; plain percentiles cover 86 to 91 %.
        assert 366 <= inside <= 394, rows


def test_mean_interval_equals_the_slow_one() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 25).tolist()
    slow, fast = _slow_mean_interval(values), statistics.mean_interval(values)
    # Two Monte Carlo quantiles: each has a standard error near 0.01 standard errors x 2.7, here about 0.015.
    assert fast == pytest.approx(slow, abs=0.06)


def test_ratio_interval_equals_the_slow_one() -> None:
    generator = np.random.default_rng(0)
    original = generator.lognormal(0, 0.3, 21)
    compressed = original * generator.normal(0.8, 0.05, 21)
    slow = _slow_ratio_interval(original.tolist(), compressed.tolist())
    fast = statistics.median_ratio_interval(original.tolist(), compressed.tolist())
    assert fast == pytest.approx(slow, abs=0.02)  # medians of 21 move in steps of about that size


def test_no_change_has_an_interval_of_zero() -> None:
    assert statistics.mean_interval([0.0] * 5) == (0.0, 0.0)
    assert statistics.median_ratio_interval([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == (2.0, 2.0)


def test_is_the_same_each_time_and_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=50).tolist()
    first = statistics.mean_interval(values)
    assert statistics.mean_interval(values) == first
    monkeypatch.setattr(statistics, "BATCH_INDICES", 1000)
    assert statistics.mean_interval(values) == pytest.approx(first, abs=1e-12)


def test_few_samples_and_quantiles() -> None:
    assert statistics.mean_interval([1.0]) is statistics.mean_interval([]) is None
    assert statistics.mean([]) is statistics.median([]) is statistics.quantiles([]) is None
    assert statistics.quantiles(list(range(101))) == {"p05": 5.0, "p50": 50.0, "p95": 95.0}
