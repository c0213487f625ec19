"""Verdicts: whether a measured effect is within noise, worse or better, by intervals and the measured noise floor.

**CLIP score.** The effect is the mean drift over pairs. It is within noise when the bootstrap interval of the paired
drift contains 0, or when the drift is no larger than the floor: how far the mean over as many prompts moves, in 95 of
100 cases, when the original itself is drawn again (with other seeds, or in another arithmetic: the largest of the
measured sources). Original and redrawn original are exchangeable, so the differences have mean 0, and the floor is
1.96 rms(differences) / sqrt(prompts).

**Similarity** of pixels (PSNR, SSIM, MS-SSIM, LPIPS) has no natural zero: only identical pictures have it, and another
arithmetic alone breaks identity. So it is compared with the similarity that the original in another arithmetic
(bfloat16, or another batch size; whichever is further off) keeps to itself on the same prompts, by the paired
difference. Further off is worse. Anything else is within noise, for nobody needs pictures closer than rounding keeps
them. Another seed is no such measure; it says how far apart two good pictures of one prompt are. Identical pictures
have infinite PSNR; in these differences they count as the largest that unlike pictures can have: one value off by one.
CLIP image similarity and CMMD are shown beside their floors without a verdict: a thousandth of their scale is
measurable and means nothing.

**How sure.** All verdicts of a report share one chance in twenty of a false call (Bonferroni): each of k verdicts is by
its 1 - 0.05/k interval, wider where the evaluation planned to look several times (`evaluation/stopping.py`). So a
pipeline against itself has every drift within noise in about 95 of 100 reports or more. The 95 % interval is shown
beside it. The verdicts of an attribution, over fewer pictures, share one chance in twenty of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from sdcompress.report import statistics
from sdcompress.report.pairing import by_prompt
from sdcompress.report.quality_model import Interval, NoiseFloor, Pair, Sample, Verdict
from sdcompress.report.sample_metrics import PAIR_METRICS

OTHER_ARITHMETIC = ("bfloat16", "batch")
SIMILARITIES = ("psnr_db", "ssim", "ms_ssim", "lpips")
FALSE_CALLS = 0.05
PEAK = 255.0
NORMAL_97_5 = 1.959963984540054  # quantile of the normal distribution

Pairs = Sequence[Pair]
Level = Callable[[float], float]  # chance that an interval misses -> its confidence level
Sources = Mapping[str, Pairs]  # source of noise -> the original's redrawn pictures


def judge(
    pairs: Pairs,
    noise_floor: NoiseFloor | None,
    largest_psnr_db: Mapping[int, float],
    level: Level,
    pipelines: int = 1,
) -> dict[str, Verdict]:
    """Return the verdict on each metric that can be judged.

    Args:
        pairs: how a pipeline's pictures differ from the original's.
        noise_floor: how far the original differs from itself; None where that was not measured.
        largest_psnr_db: index of a sample -> what identical pictures of its size count as.
        level: chance that an interval misses -> the confidence level that it needs.
        pipelines: how many calls of this function share the chance of a false call.
    """
    sources = {} if noise_floor is None else {name: each.samples for name, each in noise_floor.sources.items()}
    similar = {}
    for name in SIMILARITIES:
        found = _beside_floor(name, pairs, sources, largest_psnr_db)
        if found is not None:
            similar[name] = found
    drifts = _drifts(pairs)
    count = pipelines * (len(similar) + (len(drifts) > 1))
    verdicts = {}
    if len(drifts) > 1:
        verdicts["clip_score"] = _judge_drift(drifts, sources, level, FALSE_CALLS / count)
    for name, (values, own, source) in similar.items():
        verdicts[name] = _judge_similarity(name, values, own, source, level, FALSE_CALLS / count)
    return verdicts


def overall(verdicts: Mapping[str, Verdict]) -> str | None:
    """Return "worse" if any metric is, then "better", then "within noise"; None where none was judged."""
    found = {each.verdict for each in verdicts.values()}
    return next((word for word in ("worse", "better", "within noise") if word in found), None)


def largest_psnr(samples: Sequence[Sample]) -> dict[int, float]:
    """Return, by index, the largest PSNR in dB that two unlike pictures of a sample's size can have."""
    return {each.index: 10 * math.log10(PEAK**2 * 3 * each.original.height * each.original.width) for each in samples}


def drift_floor(redrawn: Sequence[float], prompts: int) -> float:
    """Return how far the mean drift over `prompts` moves in 95 of 100 cases, from the drifts of redrawn originals."""
    rms = math.sqrt(sum(value**2 for value in redrawn) / len(redrawn))
    return NORMAL_97_5 * rms / math.sqrt(prompts)


def _drifts(pairs: Pairs) -> list[float]:
    scored = [(pair, pair.drift) for pair in pairs if pair.drift is not None]
    return by_prompt([pair for pair, _ in scored], [drift for _, drift in scored])


def _judge_drift(drifts: list[float], sources: Sources, level: Level, error: float) -> Verdict:
    effect = sum(drifts) / len(drifts)
    floors = {name: drift_floor(own, len(drifts)) for name, pairs in sources.items() if (own := _drifts(pairs))}
    largest = max(floors, key=lambda name: floors[name]) if floors else None
    floor = None if largest is None else floors[largest]
    low, high = _interval(drifts, level(error))
    at = f"its {100 * level(error):.4g} % interval [{low:+.3g}, {high:+.3g}]"
    if low <= 0 <= high:
        verdict, reason = "within noise", f"{at} contains 0"
    elif floor is not None and abs(effect) <= floor:
        verdict, reason = "within noise", f"redrawing the original ({largest}) moves the mean as far"
    else:
        verdict = "worse" if effect < 0 else "better"
        reason = f"{at} does not contain 0" + (f", and no redrawing ({largest}) moves it so far" if largest else "")
    interval = statistics.mean_interval(drifts, level(FALSE_CALLS))
    return Verdict(verdict=verdict, effect=effect, interval_95=interval, floor=floor, reason=reason)


def _judge_similarity(
    name: str, values: list[float], own: list[float], source: str, level: Level, error: float
) -> Verdict:
    """Return the verdict on a pipeline's values per prompt beside the redrawn original's own, on the same prompts."""
    differences = [value - floor for value, floor in zip(values, own, strict=True)]
    low, high = _interval(differences, level(error))
    further = high < 0 if PAIR_METRICS[name].higher_is_better else low > 0
    what = f"the original in {source}" if source == "bfloat16" else "the original in batches"
    reason = f"{'further' if further else 'no further'} from the original than {what} is"
    return Verdict(
        verdict="worse" if further else "within noise",
        effect=sum(differences) / len(differences),
        interval_95=statistics.mean_interval(differences, level(FALSE_CALLS)),
        floor=sum(own) / len(own),
        floor_source=source,
        prompts=len(differences),
        reason=f"{reason}, {len(differences)} prompts "
        f"({100 * level(error):.4g} % interval of the difference [{low:+.3g}, {high:+.3g}])",
    )


def _beside_floor(
    name: str, pairs: Pairs, sources: Sources, largest_psnr_db: Mapping[int, float]
) -> tuple[list[float], list[float], str] | None:
    """Return values per prompt, the redrawn original's on the same prompts, and the source; None without a source."""
    by_index = {pair.index: pair for pair in pairs}
    found: dict[str, tuple[list[float], list[float]]] = {}
    for source in OTHER_ARITHMETIC:
        both = [
            (pair, value, floor)
            for redrawn in sources.get(source, ())
            if (pair := by_index.get(redrawn.index)) is not None
            and (floor := _value(name, redrawn, largest_psnr_db)) is not None
            and (value := _value(name, pair, largest_psnr_db)) is not None
        ]
        drawn = [pair for pair, _, _ in both]
        values, floors = by_prompt(drawn, [each[1] for each in both]), by_prompt(drawn, [each[2] for each in both])
        if len(values) > 1:
            found[source] = values, floors
    if not found:
        return None
    sign = 1 if PAIR_METRICS[name].higher_is_better else -1
    furthest = min(found, key=lambda source: sign * sum(found[source][1]) / len(found[source][1]))
    return (*found[furthest], furthest)


def _value(name: str, pair: Pair, largest_psnr_db: Mapping[int, float]) -> float | None:
    if name == "psnr_db":
        return largest_psnr_db[pair.index] if pair.identical else pair.psnr_db
    return pair.ssim if name == "ssim" else pair.metrics.get(name)


def _interval(values: list[float], confidence: float) -> Interval:
    found = statistics.mean_interval(values, confidence)
    assert found is not None  # there are at least two values
    return found
