"""How often an evaluation that may stop early calls a pipeline worse or better that is not, and what it misses.

    python benchmarks/early_stopping.py [--evaluations 2000]

Simulates the drift of the CLIP score, prompt by prompt, in units of what another seed does to one picture, and lets
the real rule (`sdcompress.evaluation.stopping`) stop. The verdict is by the report's own intervals and noise floor. A
fixed count of prompts is beside it, and the rule with plain 95 % intervals, which shows why they are not enough. Every
rate is kept in benchmarks/results/early_stopping.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.full_size import commit  # noqa: E402
from sdcompress.environment import describe_environment  # noqa: E402
from sdcompress.evaluation.stopping import FIRST_LOOK, Stopping, plan_looks, reason_to_stop  # noqa: E402
from sdcompress.report.statistics import mean_interval  # noqa: E402
from sdcompress.report.verdicts import drift_floor  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "early_stopping.json"
MOST = 32  # prompts, as many as tiny-sd's own
Draw = Callable[[np.random.Generator, int], np.ndarray]


def normal(random: np.random.Generator, count: int) -> np.ndarray:
    """Draw from the normal distribution of variance 1."""
    return random.normal(0, 1, count)


def heavy(random: np.random.Generator, count: int) -> np.ndarray:
    """Draw from Laplace's distribution of variance 1: a few prompts move far."""
    return random.laplace(0, math.sqrt(0.5), count)


def skewed(random: np.random.Generator, count: int) -> np.ndarray:
    """Draw from the exponential distribution of mean 0 and variance 1: whatever moves far moves to one side."""
    return random.exponential(1, count) - 1


# Name -> (distribution, mean, scatter, whether the noise floor is measured).
CASES: dict[str, tuple[Draw, float, float, bool]] = {
    "itself, normal": (normal, 0, 1, True),
    "itself, heavy tails": (heavy, 0, 1, True),
    "itself, a third of the scatter": (normal, 0, 0.33, True),
    "itself, normal, no floor": (normal, 0, 1, False),
    "itself, heavy tails, no floor": (heavy, 0, 1, False),
    "itself, skewed, no floor": (skewed, 0, 1, False),
    "0.5 worse, a third of the scatter": (normal, -0.5, 0.33, True),
    "1 worse": (normal, -1, 1, True),
    "2 worse": (normal, -2, 1, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=2000)
    evaluations = parser.parse_args().evaluations
    rules = {"may stop early": plan_looks(MOST, early=True), "fixed count": plan_looks(MOST, early=False)}
    rates: dict[str, Any] = {}
    for case, parameters in CASES.items():
        rates[case] = {rule: simulate(*parameters, looks, evaluations) for rule, looks in rules.items()}
        rates[case]["plain intervals"] = simulate(*parameters, rules["may stop early"], evaluations, plain=True)
        print(case, json.dumps(rates[case]), flush=True)
    result = {
        "command": f"python benchmarks/early_stopping.py --evaluations {evaluations}",
        "commit": commit(),
        "environment": describe_environment(),
        "evaluations": evaluations,
        "rates": rates,
    }
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {RESULT}")


def simulate(
    draw: Draw, mean: float, scatter: float, with_floor: bool, looks: tuple[int, ...], count: int, plain: bool = False
) -> dict[str, float]:
    """Return the share of evaluations that call a drift, and whose interval holds the true mean; prompts on average.

    plain: whether every look has a 95 % interval.
    """
    random = np.random.default_rng(0)
    called = covered = prompts = 0
    for _ in range(count):
        drifts = mean + scatter * draw(random, MOST)
        redrawn = draw(random, FIRST_LOOK).tolist() if with_floor else []
        look = next((look for look in looks[:-1] if reason_to_stop(drifts[:look], redrawn, looks)), looks[-1])
        confidence = 0.95 if plain else Stopping(looks, look, "").confidence()
        if plain:  # stopping at the first look that has a verdict at 95 %
            look = next((each for each in looks if _call(drifts[:each], redrawn, confidence)), looks[-1])
        called += _call(drifts[:look], redrawn, confidence)
        low, high = mean_interval(drifts[:look].tolist(), confidence) or (math.nan, math.nan)
        covered += low <= mean <= high
        prompts += look
    return {"called": called / count, "covered": covered / count, "prompts": prompts / count}


def _call(drifts: np.ndarray, redrawn: list[float], confidence: float) -> bool:
    low, high = mean_interval(drifts.tolist(), confidence) or (math.nan, math.nan)
    beyond = not redrawn or abs(drifts.mean()) > drift_floor(redrawn, len(drifts))
    return beyond and not low <= 0 <= high


if __name__ == "__main__":
    main()
