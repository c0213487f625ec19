"""The steps that recipes can name."""

from __future__ import annotations

from functools import cache

from sdcompress.planning.steps import Step
from sdcompress.plugins import find_classes


@cache
def known_steps() -> dict[str, type[Step]]:
    """Return step kind -> class, for every module of `sdcompress/planning/steps/`."""
    return find_classes("sdcompress.planning.steps", Step, "kind")  # type: ignore[type-abstract]
