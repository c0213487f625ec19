"""What a metric hands back: every sample it took, and how to read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """The raw samples of one metric on one subject (`original`, `compressed`, or the pair of them: `similarity`)."""

    metric: str
    subject: str
    unit: str
    samples: tuple[float, ...]
    higher_is_better: bool
