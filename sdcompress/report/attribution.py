"""What each component of the compressed pipeline cost and saved, and each step of its recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sdcompress.evaluation.result import ComponentSwap, StepSwap
from sdcompress.report import statistics
from sdcompress.report.pairing import estimate
from sdcompress.report.quality_model import (
    Change,
    Difference,
    NoiseFloor,
    Sample,
    StepFigures,
    StepGain,
    SwapFigures,
    VariantSample,
)
from sdcompress.report.variants import variant_figures
from sdcompress.report.verdicts import FALSE_CALLS, Level, judge, largest_psnr, overall


def describe_attribution(
    variants: Mapping[str, list[VariantSample]],
    samples: Sequence[Sample],
    swaps: Sequence[ComponentSwap],
    noise_floor: NoiseFloor | None,
    level: Level,
) -> list[SwapFigures]:
    """Return what each swap cost and saved, the largest cost in PSNR first, with its steps one by one.

    Times are paired with the original's. Quality is judged as the whole pipeline's is (`verdicts.py`).
    """
    labels = {swap.variant: None for swap in swaps}
    labels |= {step.variant: None for swap in swaps for step in swap.after_steps if step.not_measured is None}
    drawn = {label: variants.get(label, []) for label in labels}
    largest = largest_psnr(samples)
    figures = {label: _figures(found, noise_floor, largest, level, len(drawn)) for label, found in drawn.items()}
    entries = []
    for swap in swaps:
        steps = _describe_steps(swap.after_steps, drawn, figures, level(FALSE_CALLS))
        entries.append(SwapFigures(**{**swap.to_json(), **figures[swap.variant], "ladder": steps}))
    return sorted(entries, key=lambda entry: math.inf if entry.psnr_db.mean is None else entry.psnr_db.mean)


def _figures(
    found: list[VariantSample],
    noise_floor: NoiseFloor | None,
    largest: Mapping[int, float],
    level: Level,
    pipelines: int,
) -> dict[str, Any]:
    times = [[each.original_latency_s or 0.0 for each in found], [each.latency_s or 0.0 for each in found]]
    medians = [statistics.median(each) for each in times]
    ratio = None if None in medians else medians[1] / medians[0]  # type: ignore[operator]
    interval = statistics.median_ratio_interval(times[0], times[1], level(FALSE_CALLS))
    verdicts = judge(found, noise_floor, largest, level, pipelines)
    return {
        **variant_figures(found, level(FALSE_CALLS)),
        "latency_s": Change(ratio=ratio, ratio_interval_95=interval),
        "verdict": overall(verdicts),
        "verdicts": verdicts,
    }


def _describe_steps(
    steps: Sequence[StepSwap],
    drawn: Mapping[str, list[VariantSample]],
    figures: Mapping[str, Mapping[str, Any]],
    confidence: float,
) -> list[StepFigures]:
    """Return each step's figures against the original, and what it `adds` to those of the measured step before it."""
    described: list[StepFigures] = []
    before: list[VariantSample] | None = None
    unmeasured: list[str] = []
    for step in steps:
        if step.not_measured is not None:
            described.append(StepFigures(**asdict(step), together_with=[], adds=None))
            unmeasured.append(step.step)
            continue
        found = drawn[step.variant]
        gain = _gain(found, before, confidence)
        described.append(StepFigures(**asdict(step), **figures[step.variant], together_with=unmeasured, adds=gain))
        before, unmeasured = found, []
    return described


def _gain(found: list[VariantSample], before: list[VariantSample] | None, confidence: float) -> StepGain:
    """Return what the pictures gained (below 0: lost) since the step before, or the original at the first step.

    PSNR is over the pictures that were not identical to the original at either step; None where there are none.
    """
    earlier = {each.index: each for each in before or ()}
    clip: list[float | None] = []
    psnr: list[float | None] = []
    for each in found:
        base = earlier.get(each.index)
        drift = 0.0 if before is None else None if base is None else base.drift
        clip.append(_minus(each.drift, drift))
        psnr.append(_minus(each.psnr_db, None if base is None else base.psnr_db))
    return StepGain(clip_score=_difference(found, clip, confidence), psnr_db=_difference(found, psnr, confidence))


def _minus(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def _difference(found: list[VariantSample], values: list[float | None], confidence: float) -> Difference:
    known = estimate(found, values, confidence)
    return Difference(difference=known.mean, interval_95=known.interval_95)
