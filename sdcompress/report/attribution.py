"""What each component of the compressed pipeline cost and saved, and each step of its recipe: the ladder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sdcompress.report import statistics
from sdcompress.report.pairing import by_prompt
from sdcompress.report.variants import describe_variant, variant_samples
from sdcompress.report.verdicts import judge, overall

Found = list[dict[str, Any]]  # one entry per picture of a swapped pipeline


def describe_attribution(
    records: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, Any]],
    scorer: str | None,
    swaps: Sequence[Mapping[str, Any]],
    noise_floor: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """What each swap cost and saved, the largest cost in PSNR first, with its ladder of steps.

    Times are paired with the original's. Quality is judged as the whole pipeline's is (`verdicts.py`).
    """
    labels = {swap["variant"]: None for swap in swaps}
    labels |= {rung["variant"]: None for swap in swaps for rung in swap["ladder"] if rung["not_measured"] is None}
    drawn = {label: variant_samples(records, label, samples, scorer) for label in labels}
    figures = {label: _figures(found, samples, noise_floor, len(drawn)) for label, found in drawn.items()}
    entries = [
        {**swap, **figures[swap["variant"]], "ladder": _describe_ladder(swap["ladder"], drawn, figures)}
        for swap in swaps
    ]
    return sorted(entries, key=_cost)


def _figures(
    found: Found, samples: Sequence[Mapping[str, Any]], noise_floor: Mapping[str, Any] | None, pipelines: int
) -> dict[str, Any]:
    times = [[entry[name] for entry in found] for name in ("original_latency_s", "latency_s")]
    medians = [statistics.median(each) for each in times]
    ratio = None if None in medians else medians[1] / medians[0]  # type: ignore[operator]
    interval = statistics.median_ratio_interval(*times) if found else None
    verdicts = judge(_as_pairs(found, samples), noise_floor, pipelines)
    return {
        **describe_variant(found),
        "latency_s": {"ratio": ratio, "ratio_interval_95": interval},
        "verdict": overall(verdicts),
        "verdicts": verdicts,
    }


def _describe_ladder(
    rungs: Sequence[Mapping[str, Any]], drawn: Mapping[str, Found], figures: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each rung with its figures against the original, and what it `adds` to those of the last measured one before.

    `with`: the steps since then that were not measured alone, whose cost is in the rung's.
    """
    described, before, unmeasured = [], None, []
    for rung in rungs:
        if rung["not_measured"] is not None:
            described.append({**rung, "with": [], "adds": None})
            unmeasured.append(rung["step"])
            continue
        found = drawn[rung["variant"]]
        adds = _difference(found, before)
        described.append({**rung, **figures[rung["variant"]], "with": unmeasured, "adds": adds})
        before, unmeasured = found, []
    return described


def _difference(found: Found, before: Found | None) -> dict[str, Any]:
    """Means and 95 % intervals of what pictures gained (below 0: lost) since the rung before, the original at first.

    PSNR is over the pictures that were not identical to the original on either rung; None where there are none.
    """
    earlier = {entry["index"]: entry for entry in before or ()}
    clip, psnr = [], []
    for entry in found:
        base = earlier.get(entry["index"])
        drift = entry["clip_score_difference"]
        since = 0.0 if before is None else (base or {}).get("clip_score_difference")
        if drift is not None and since is not None:
            clip.append((entry, drift - since))
        if base is not None and entry["psnr_db"] is not None and base["psnr_db"] is not None:
            psnr.append((entry, entry["psnr_db"] - base["psnr_db"]))
    return {"clip_score": _mean(clip), "psnr_db": _mean(psnr)}


def _as_pairs(found: Found, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The samples that the swapped pipeline drew too, its pictures in the place of the compressed one's."""
    originals = {sample["index"]: sample for sample in samples}
    pairs = []
    for entry in found:
        sample = originals[entry["index"]]
        score, drift = sample["original"]["clip_score"], entry["clip_score_difference"]
        swapped = {"blocked": False, "clip_score": None if score is None or drift is None else score + drift}
        compared = {name: entry[name] for name in ("psnr_db", "identical", "ssim", "metrics")}
        pairs.append({**sample, **compared, "compressed": swapped})
    return pairs


def _mean(pairs: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, Any]:
    values = [value for _, value in pairs]
    interval = statistics.mean_interval(by_prompt([entry for entry, _ in pairs], values))
    return {"difference": statistics.mean(values), "interval_95": interval}


def _cost(entry: Mapping[str, Any]) -> float:
    return math.inf if entry["psnr_db"]["mean"] is None else float(entry["psnr_db"]["mean"])
