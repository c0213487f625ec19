"""Which samples count as pairs, and estimates over prompts."""

from __future__ import annotations

from collections.abc import Sequence

from sdcompress.report import statistics
from sdcompress.report.quality_model import Estimate, Pair, Sample


def shown_pairs(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples of which the safety checker blocked neither picture."""
    return [sample for sample in samples if not sample.blocked]


def by_prompt(samples: Sequence[Pair], values: Sequence[float]) -> list[float]:
    """Return the mean value of each prompt: seeds of one prompt are no independent samples."""
    groups: dict[str, list[float]] = {}
    for sample, value in zip(samples, values, strict=True):
        groups.setdefault(sample.prompt, []).append(value)
    return [sum(group) / len(group) for group in groups.values()]


def estimate(samples: Sequence[Pair], values: Sequence[float | None], confidence: float) -> Estimate:
    """Return the mean of the values, one for each sample, and its interval over prompts; None is left out."""
    known = [(sample, value) for sample, value in zip(samples, values, strict=True) if value is not None]
    means = by_prompt([sample for sample, _ in known], [value for _, value in known])
    interval = statistics.mean_interval(means, confidence)
    return Estimate(mean=statistics.mean([value for _, value in known]), interval_95=interval)
