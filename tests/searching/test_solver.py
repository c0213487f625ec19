import itertools
import math
import random

import pytest

from sdcompress.errors import UserError
from sdcompress.searching.solver import GAP, Option, solve


def best_by_trying(groups: list[list[Option]], limit: float) -> float:
    sums = [
        sum(option.damage for option in choice)
        for choice in itertools.product(*groups)
        if sum(option.costs["bytes"] for option in choice) <= limit
    ]
    return min(sums, default=math.inf)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_as_good_as_trying_all(seed: int) -> None:
    rng = random.Random(seed)
    groups = [
        [Option(10 ** rng.uniform(-9, -3), {"bytes": rng.randrange(1, 40)}) for _ in range(rng.randrange(1, 4))]
        for _ in range(7)
    ]
    smallest = sum(min(option.costs["bytes"] for option in group) for group in groups)
    found = solve(groups, {"bytes": smallest + rng.randrange(0, 60)})
    chosen = [group[place] for group, place in zip(groups, found.chosen, strict=True)]
    assert found.damage == pytest.approx(sum(option.damage for option in chosen))
    limit = sum(option.costs["bytes"] for option in chosen)
    assert found.damage <= best_by_trying(groups, limit) * (1 + GAP) + 1e-6 * max(o.damage for g in groups for o in g)


def test_bytes_can_be_the_objective() -> None:
    small, large = Option(1e-3, {"bytes": 1}), Option(1e-6, {"bytes": 10})
    found = solve([[small, large], [small, large]], {"damage": 1.5e-3}, minimize="bytes")
    assert sorted(found.chosen) == [0, 1]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError):
        solve([[Option(0.0, {"bytes": 5})]], {"bytes": 4})
