"""The metrics of pairs of pictures, found in the modules of this folder. A new one is a file with a `METRIC`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from sdcompress.plugins import find_constants

if TYPE_CHECKING:
    import numpy as np

Measure = Callable[["np.ndarray", "np.ndarray"], "float | None"]


@dataclass(frozen=True)
class PairMetric:
    """A figure of two pictures that were drawn from one prompt and seed.

    Args:
        name: its key in files.
        words: its name in reports.
        unit: of the figure; "1" for a plain number.
        higher_is_better: whether more of it is more alike.
        digits: how many are shown behind the decimal point.
        open: returns the function that measures. It gets the original's and the compressed pipeline's picture, uint8,
            [height, width, 3], both of one size, and returns None where the figure does not exist.
        of: `embeddings` if the function gets their CLIP embeddings instead, [dimensions], of unit length.
        why_not: returns why the metric cannot be measured on this machine; None when it can.
    """

    name: str
    words: str
    unit: str
    higher_is_better: bool
    digits: int
    open: Callable[[], Measure]
    of: Literal["pictures", "embeddings"] = "pictures"
    why_not: Callable[[], str | None] = lambda: None


@cache
def pair_metrics() -> dict[str, PairMetric]:
    """Return name -> metric."""
    found: list[PairMetric] = list(find_constants("sdcompress.evaluation.metrics", "METRIC").values())
    return {metric.name: metric for metric in found}
