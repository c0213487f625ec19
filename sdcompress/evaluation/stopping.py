"""When an evaluation stops drawing: as soon as the intervals of its verdict are narrow enough.

Without a count of prompts, an evaluation draws in stages: 8 prompts, 16, 32, ... up to all that the prompt set gives by
default. Each stage's prompts are spread evenly over the set. After each stage but the last it looks at the drift of the
CLIP score, prompt by prompt, beside the noise floor (the drift of the original drawn with another seed), and stops if

- the drift is called: the interval that a verdict is by excludes 0, and the mean drift is larger than the floor; or
- the interval is narrow enough: it reaches no further from the mean than redrawing the original moves the mean of
  8 prompts. From there on the noise floor limits the verdict, not the number of pictures.

Similarity verdicts are over the noise floor's pictures, of which there are as many at every look. Without a CLIP model,
or with a count of prompts, everything is drawn.

**Why the intervals stay honest.** Whoever looks several times gives chance several chances. So the intervals of such an
evaluation are wider: each is at Pocock's nominal level for its planned looks (Pocock 1977, Biometrika 64:191), at which
all looks together miss with 5 %. Such "repeated confidence intervals" hold whatever makes the evaluation stop
(Jennison and Turnbull 1999, chapter 9), and stopping because an interval is narrow favours no verdict. The level is
exact for normal means; for few prompts it is applied to Student's t, as Jennison and Turnbull do (section 4.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np

FIRST_LOOK = 8  # prompts
ERROR = 0.05  # the chance that an interval, or any verdict of a report, is wrong
MOST_VERDICTS = 5  # CLIP score, PSNR, SSIM, MS-SSIM and LPIPS share that chance


@dataclass(frozen=True)
class Stopping:
    """When an evaluation stopped, and why.

    Args:
        looks: how many prompts are drawn at each look; the last is the most that may be drawn.
        prompts: how many were drawn.
        reason: why it stopped there.
    """

    looks: tuple[int, ...]
    prompts: int
    reason: str

    def confidence(self, error: float = ERROR) -> float:
        """Return the level that intervals need at each look, so that all looks together miss with chance `error`.

        Examples:
            >>> Stopping((32,), 32, "all were asked for").confidence()
            0.95
            >>> round(Stopping((8, 16, 32), 8, "the interval is narrow enough").confidence(), 4)
            0.9792
        """
        return 1 - nominal_error(error, self.looks)

    def to_json(self) -> dict[str, Any]:
        """Return what a report keeps of it."""
        return {
            "looks": list(self.looks),
            "prompts": self.prompts,
            "reason": self.reason,
            "interval_level": self.confidence(),
        }


def plan_looks(most: int, early: bool) -> tuple[int, ...]:
    """Return how many prompts are drawn at each look.

    Args:
        most: prompts in all.
        early: whether the evaluation may stop before it has drawn them all.

    Examples:
        >>> plan_looks(40, early=True), plan_looks(40, early=False)
        ((8, 16, 32, 40), (40,))
    """
    looks = []
    count = FIRST_LOOK
    while early and count < most:
        looks.append(count)
        count *= 2
    return (*looks, most)


def reason_to_stop(drifts: Sequence[float], redrawn: Sequence[float], looks: tuple[int, ...]) -> str | None:
    """Return why the evaluation can stop, None if it has to go on.

    Args:
        drifts: compressed minus original CLIP score, by prompt.
        redrawn: the drift of the original drawn with another seed, by prompt; empty if it was not measured.
        looks: how many prompts are drawn at each look.
    """
    if len(drifts) < 2:
        return None
    mean, standard_error = fmean(drifts), stdev(drifts) / math.sqrt(len(drifts))
    rms = math.sqrt(fmean([drift**2 for drift in redrawn])) if redrawn else 0.0
    floor = NormalDist().inv_cdf(1 - ERROR / 2) * rms  # of one prompt
    called = standard_error * _student(1 - nominal_error(ERROR / MOST_VERDICTS, looks), len(drifts) - 1)
    if abs(mean) > called and abs(mean) > floor / math.sqrt(len(drifts)):
        return f"the mean drift of the CLIP score, {mean:+.3g}, is further from 0 than its interval and the noise floor"
    half_width = standard_error * _student(1 - nominal_error(ERROR, looks), len(drifts) - 1)
    margin = floor / math.sqrt(FIRST_LOOK)
    if redrawn and half_width <= margin:
        return (
            f"the interval of the CLIP drift is narrow enough: ±{half_width:.2g}, where redrawing the original moves "
            f"the mean of {FIRST_LOOK} prompts by ±{margin:.2g}"
        )
    return None


@cache
def nominal_error(error: float, looks: tuple[int, ...]) -> float:
    """Return the chance of a miss that each look may have, so that all together have `error` (Pocock 1977).

    Args:
        error: the chance that any look's interval misses.
        looks: how many samples there are at each look.

    Examples:
        >>> [round(nominal_error(0.05, tuple(range(1, count + 1))), 4) for count in (1, 2, 3, 5)]
        [0.05, 0.0294, 0.0221, 0.0158]
    """
    if len(looks) == 1:
        return error
    low, high = error / len(looks), error  # Bonferroni's, and that of a single look
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _any_error(middle, looks) < error else (low, middle)
    return (low + high) / 2


def _any_error(nominal: float, looks: tuple[int, ...]) -> float:
    """Return the chance that a mean without effect leaves its nominal interval at any look.

    The sum of the samples is a random walk; the density of those walks that stayed inside so far is carried from look
    to look by Gauss-Legendre quadrature (Armitage, McPherson and Rowe 1969).
    """
    bound = NormalDist().inv_cdf(1 - nominal / 2)
    nodes, weights = np.polynomial.legendre.leggauss(64)
    ends = bound * np.sqrt(np.asarray(looks, dtype=np.float64))  # of the sum, at each look
    density = _normal_density(nodes * ends[0], looks[0])
    for (before, after), (end, next_end) in zip(pairwise(looks), pairwise(ends), strict=True):
        steps = (nodes * next_end)[:, None] - (nodes * end)[None]  # [sum after, sum before]
        density = _normal_density(steps, after - before) @ (density * weights * end)
    return 1 - float(density @ weights * ends[-1])


def _normal_density(values: np.ndarray, variance: float) -> np.ndarray:
    density: np.ndarray = np.exp(-(values**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    return density


def _student(confidence: float, degrees: int) -> float:
    """Return the half width, in standard errors, of Student's interval."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))
