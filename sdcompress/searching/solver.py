"""The multiple-choice knapsack: one candidate for each group of layers, least damage, within limits on costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdcompress.errors import UserError

GAP = 1e-4  # relative; far below what damages are known to
SECONDS = 30.0


@dataclass(frozen=True)
class Option:
    """One candidate of a group: its damage, and what it costs of each limited amount, such as bytes."""

    damage: float
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Solution:
    """The chosen option of each group.

    Args:
        chosen: index of the option, for each group.
        damage: sum of the chosen options' damages.
        gap: relative distance to the bound that the solver proved.
    """

    chosen: tuple[int, ...]
    damage: float
    gap: float


def solve(groups: Sequence[Sequence[Option]], limits: Mapping[str, float], minimize: str | None = None) -> Solution:
    """Return the choice with the least total damage whose costs keep within the limits.

    It is solved exactly, up to `GAP`, by HiGHS' branch and bound (Huangfu & Hall 2018).

    Args:
        groups: the options of each group.
        limits: name of a cost, or `damage` -> the largest sum allowed.
        minimize: a cost to make least instead of the damage.

    Raises:
        UserError: no choice keeps within the limits.

    Examples:
        >>> cheap, dear = Option(3.0, {"bytes": 1}), Option(0.5, {"bytes": 4})
        >>> solve([[cheap, dear], [dear]], {"bytes": 7}).chosen
        (0, 0)
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix, vstack

    flat = [option for options in groups for option in options]
    owner = np.repeat(np.arange(len(groups)), [len(options) for options in groups])
    count = len(flat)
    one_each = csr_matrix((np.ones(count), (owner, np.arange(count))), shape=(len(groups), count))

    def amounts(name: str) -> np.ndarray:
        return np.array([option.damage if name == "damage" else option.costs[name] for option in flat])

    objective = amounts(minimize or "damage")
    rows, upper = [one_each], [*np.ones(len(groups))]
    for name, limit in limits.items():
        scale = max(limit, 1e-30)
        rows.append(csr_matrix(amounts(name) / scale))
        upper.append(limit / scale)
    lower = [*np.ones(len(groups)), *[-np.inf] * len(limits)]
    found = milp(
        objective / max(float(objective.max()), 1e-30),
        constraints=LinearConstraint(vstack(rows), lower, upper),
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP, "time_limit": SECONDS},
    )
    if found.x is None:
        raise UserError(f"no choice keeps within the limits ({', '.join(f'{k} {v:.4g}' for k, v in limits.items())})")
    picked = np.flatnonzero(found.x > 0.5)
    starts = np.searchsorted(owner, np.arange(len(groups)))
    chosen = tuple(int(place) for place in picked - starts)
    damage = float(sum(flat[place].damage for place in picked))
    return Solution(chosen, damage, float(found.mip_gap or 0.0))
