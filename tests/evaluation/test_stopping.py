"""When an evaluation stops: the levels of its looks, and how often a verdict after early stopping is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from sdcompress.evaluation.stopping import Stopping, nominal_error, plan_looks, reason_to_stop


@pytest.mark.parametrize(("looks", "nominal"), [(2, 0.0294), (3, 0.0221), (4, 0.0182), (5, 0.0158), (10, 0.0106)])
def test_the_levels_are_pococks(looks: int, nominal: float) -> None:
    """Pocock 1977, table 1, of equally large groups."""
    assert nominal_error(0.05, tuple(range(1, looks + 1))) == pytest.approx(nominal, abs=5e-5)


def test_levels_of_growing_groups_by_simulation() -> None:
    looks, count = (8, 16, 32, 40), 200_000
    steps = np.diff((0, *looks))
    sums = np.random.default_rng(0).normal(0, np.sqrt(steps), (count, len(looks))).cumsum(axis=1)
    for error in (0.05, 0.01):
        from scipy.special import ndtri

        bound = ndtri(1 - nominal_error(error, looks) / 2)
        missed = (np.abs(sums / np.sqrt(looks)) > bound).any(axis=1).mean()
        assert missed == pytest.approx(error, abs=4 * np.sqrt(error / count))  # 4 standard errors


def test_a_single_look_is_plain() -> None:
    assert plan_looks(32, early=False) == plan_looks(32, early=False) == (32,)
    assert plan_looks(8, early=True) == (8,) and plan_looks(9, early=True) == (8, 9)
    assert Stopping((32,), 32, "").confidence(0.01) == 0.99


def test_too_few_scores_are_no_reason() -> None:
    assert reason_to_stop([0.1], [0.1, 0.2], (8, 16)) is None
    assert reason_to_stop([0.1] * 8, [], (8, 16)) is not None  # called without a floor: there is no scatter at all
    assert reason_to_stop([0.1, -0.1] * 4, [], (8, 16)) is None  # without a floor nothing says what is narrow
