"""Verdicts: is a measured effect within noise, worse or better? By intervals and the measured floor, never by eye.

**CLIP score.** The effect is the mean drift over paired pictures. It is within noise when the bootstrap interval of the
paired drift contains 0, or when the drift is no larger than the floor: how far the mean over as many prompts moves, in
95 of 100 cases, when the original itself is drawn again (with other seeds, or in another arithmetic: the largest of the
measured sources). Original and redrawn original are exchangeable, so the differences have mean 0, and the floor is
1.96 rms(differences) / sqrt(prompts).

**Similarity** of pixels (PSNR, SSIM, MS-SSIM, LPIPS) has no natural zero: only identical pictures have it, and other
arithmetic alone breaks identity. So it is compared with the similarity that the original in another arithmetic
(bfloat16, or another batch size; whichever is further off) keeps to itself on the same prompts, by the paired
difference. Further off: worse. Otherwise: within noise, for nobody needs pictures closer than rounding keeps them.
Another seed is no such measure; it says how far apart two good pictures of one prompt lie. Identical pictures have
infinite PSNR; in these differences they count as the largest that unlike pictures can have: one value off by one. CLIP
image similarity and CMMD stand beside their floors without a verdict: a thousandth of their scale is measurable and
means nothing.

**How sure.** One chance in twenty of a false call is shared by all verdicts of a report (Bonferroni): of k verdicts
each is by its 1 - 0.05/k interval. So a pipeline against itself has every drift within noise in about 95 of 100 reports
or more. The 95 % interval is shown beside it. The verdicts of an attribution, over fewer pictures, share one chance in
twenty of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from sdcompress.report import statistics
from sdcompress.report.pairing import by_prompt, scored_pairs, shown_pairs

HARMLESS = ("bfloat16", "batch")
SIMILARITIES = {"psnr_db": True, "ssim": True, "ms_ssim": True, "lpips": False}
FALSE_CALLS = 0.05
PEAK = 255.0


def judge(
    samples: Sequence[Mapping[str, Any]], noise_floor: Mapping[str, Any] | None, pipelines: int = 1
) -> dict[str, dict[str, Any]]:
    """Metric -> verdict, effect, 95 % interval of the effect, floor and reason, for what can be judged.

    pipelines: how many are judged, each by a call of this, that share the chance of a false call.
    """
    sources = (noise_floor or {}).get("sources", {})
    paired = {name: found for name in SIMILARITIES if (found := _paired_similarity(name, samples, sources)) is not None}
    pairs = scored_pairs(samples)
    drifts = by_prompt(pairs, [pair["compressed"]["clip_score"] - pair["original"]["clip_score"] for pair in pairs])
    family = pipelines * (len(paired) + (len(drifts) > 1))
    verdicts = {}
    if len(drifts) > 1:
        verdicts["clip_score"] = _judge_drift(drifts, sources, 1 - FALSE_CALLS / family)
    for name, (values, own, source) in paired.items():
        verdicts[name] = _judge_similarity(name, values, own, source, 1 - FALSE_CALLS / family)
    return verdicts


def overall(verdicts: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The verdict that matters: worse if any metric is, then better, then within noise; None where none was judged."""
    found = {verdict["verdict"] for verdict in verdicts.values()}
    return next((word for word in ("worse", "better", "within noise") if word in found), None)


def drift_floor(redrawn: Sequence[float], prompts: int) -> float:
    """How far the mean drift over `prompts` moves in 95 of 100 cases, from the drifts of redrawn originals."""
    rms = math.sqrt(sum(value**2 for value in redrawn) / len(redrawn))
    return NormalDist().inv_cdf(0.975) * rms / math.sqrt(prompts)


def _judge_drift(drifts: list[float], sources: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    effect = sum(drifts) / len(drifts)
    floors = {}
    for source, entry in sources.items():
        scored = [each for each in entry["samples"] if each["clip_score_difference"] is not None]
        redrawn = by_prompt(scored, [each["clip_score_difference"] for each in scored])
        if redrawn:
            floors[source] = drift_floor(redrawn, len(drifts))
    loudest = max(floors, key=lambda name: floors[name]) if floors else None
    floor = None if loudest is None else floors[loudest]
    deciding = statistics.mean_interval(drifts, confidence)
    assert deciding is not None
    low, high = deciding
    at = f"its {100 * confidence:.4g} % interval [{low:+.3g}, {high:+.3g}]"
    if low <= 0 <= high:
        verdict, reason = "within noise", f"{at} contains 0"
    elif floor is not None and abs(effect) <= floor:
        verdict, reason = "within noise", f"redrawing the original ({loudest}) moves the mean as far"
    else:
        verdict = "worse" if effect < 0 else "better"
        reason = f"{at} does not contain 0" + (f", and no redrawing ({loudest}) moves it so far" if loudest else "")
    interval = statistics.mean_interval(drifts)
    return {"verdict": verdict, "effect": effect, "interval_95": interval, "floor": floor, "reason": reason}


def _judge_similarity(
    name: str, values: list[float], own: list[float], source: str, confidence: float
) -> dict[str, Any]:
    """`values`: the compressed pipeline's per prompt; `own`: the redrawn original's, on the same prompts."""
    differences = [value - floor for value, floor in zip(values, own, strict=True)]
    effect, floor = sum(differences) / len(differences), sum(own) / len(own)
    deciding = statistics.mean_interval(differences, confidence)
    assert deciding is not None
    below = deciding[1] < 0 if SIMILARITIES[name] else deciding[0] > 0
    at = f"{100 * confidence:.4g} % interval of the difference [{deciding[0]:+.3g}, {deciding[1]:+.3g}]"
    what = f"the original in {source}" if source == "bfloat16" else "the original in batches"
    reason = f"further from the original than {what} is" if below else f"no further from the original than {what} is"
    return {
        "verdict": "worse" if below else "within noise",
        "effect": effect,
        "interval_95": statistics.mean_interval(differences),
        "floor": floor,
        "floor_source": source,
        "prompts": len(differences),
        "reason": f"{reason}, {len(differences)} prompts ({at})",
    }


def _paired_similarity(
    name: str, samples: Sequence[Mapping[str, Any]], sources: Mapping[str, Any]
) -> tuple[list[float], list[float], str] | None:
    """Per prompt, the compressed pipeline's and the redrawn original's similarity; None without a harmless source."""
    shown = {sample["index"]: sample for sample in shown_pairs(samples)}
    found: dict[str, tuple[list[float], list[float]]] = {}
    for source in HARMLESS:
        entries = sources.get(source, {}).get("samples", [])
        both = [
            (shown[entry["index"]], theirs, ours)
            for entry in entries
            if entry["index"] in shown
            and (theirs := _value(name, entry, shown[entry["index"]])) is not None
            and (ours := _value(name, shown[entry["index"]], shown[entry["index"]])) is not None
        ]
        pairs = [sample for sample, _, _ in both]
        ours_, theirs_ = by_prompt(pairs, [ours for _, _, ours in both]), by_prompt(pairs, [t for _, t, _ in both])
        if len(ours_) > 1:
            found[source] = (ours_, theirs_)
    if not found:
        return None
    sign = 1 if SIMILARITIES[name] else -1
    loudest = min(found, key=lambda source: sign * sum(found[source][1]) / len(found[source][1]))
    return (*found[loudest], loudest)


def _value(name: str, entry: Mapping[str, Any], sample: Mapping[str, Any]) -> float | None:
    if name == "psnr_db" and entry["identical"]:
        values = 3 * sample["original"]["height"] * sample["original"]["width"]
        return 10 * math.log10(PEAK**2 * values)  # one value of the picture off by one step
    return entry[name] if name in ("psnr_db", "ssim") else entry.get("metrics", {}).get(name)
