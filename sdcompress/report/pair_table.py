"""Every pair of pictures as a table, the worst first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdcompress.evaluation.samples import SIDES
from sdcompress.report.findings import sample_note
from sdcompress.report.number_text import number_text, seconds_text, signed_text
from sdcompress.report.quality_model import Sample
from sdcompress.report.sample_metrics import PAIR_METRICS
from sdcompress.report.statistics import median
from sdcompress.report.table import Cell, Table

INFINITE = 1e9  # what an infinite PSNR sorts by: JSON has no infinity


def worst_first(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples by CLIP drift, the largest loss first, then by PSNR; those without a figure last."""

    def badness(sample: Sample) -> tuple[float, float, int]:
        psnr = None if sample.identical else sample.psnr_db
        return (*(math.inf if value is None else value for value in (sample.drift, psnr)), sample.index)  # type: ignore[return-value]

    return sorted(samples, key=badness)


def pair_table(samples: Sequence[Sample]) -> Table:
    """Return prompt, seed, quality and times of every pair, the worst first.

    CLIP score and time are original → compressed. A metric that no pair has is left out.
    """
    ordered = worst_first(samples)
    measured = {name for sample in samples for name, value in sample.metrics.items() if value is not None}
    extra = {name: kind for name, kind in PAIR_METRICS.items() if name in measured}
    scored = any(sample.original.clip_score is not None for sample in samples)
    rows: list[list[Cell | str]] = []
    for sample in ordered:
        times = [median(sample.side(side).latency_s) for side in SIDES]
        scores = [sample.side(side).clip_score for side in SIDES]
        clip = Cell(" → ".join(map(number_text, scores)), number=scores[1])
        psnr = Cell("infinite", number=INFINITE) if sample.identical else _number(sample.psnr_db, 1)
        rows.append(
            [
                sample.prompt,
                Cell(str(sample.seed), number=sample.seed),
                *((Cell(signed_text(sample.drift), number=sample.drift), clip) if scored else ()),
                Cell("blocked") if sample.blocked else psnr,
                Cell("blocked") if sample.blocked else _number(sample.ssim, 3),
                *(_number(sample.metrics.get(name), kind.digits) for name, kind in extra.items()),
                Cell(" → ".join(map(seconds_text, times)), number=times[1]),
                sample_note(sample),
            ]
        )
    quality = ("PSNR, dB", "SSIM", *(kind.words for kind in extra.values()))
    columns = ("prompt", "seed", *(("CLIP drift", "CLIP score") if scored else ()), *quality, "time", "note")
    return Table(columns, rows, ("prompt", "note"), keys=[sample.index for sample in ordered])


def _number(value: float | None, digits: int) -> Cell:
    return Cell(number_text(value, digits), number=value)
