"""From raw samples to a report: every figure that is derived is derived here, and can be derived again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sdcompress.evaluation.result import Evaluation, ModelFacts
from sdcompress.evaluation.samples import (
    SIDES,
    ComponentsRecord,
    PictureRecord,
    ProcessRecord,
    Record,
    ScoreRecord,
    Side,
)
from sdcompress.report import statistics
from sdcompress.report.attribution import describe_attribution
from sdcompress.report.gates import check_gates
from sdcompress.report.model import SCHEMA_VERSION, Changes, ComponentFigures, PipelineFigures
from sdcompress.report.pairing import estimate, shown_pairs
from sdcompress.report.quality_model import Change, Estimate, Sample, SampleSide, Similarity
from sdcompress.report.report import Report
from sdcompress.report.sample_metrics import describe_metrics, describe_sets, why_not_measured
from sdcompress.report.variants import describe_noise_floor, scored_variants
from sdcompress.report.verdicts import FALSE_CALLS, judge, largest_psnr

FLAGS = ("blocked", "flat", "not_finite")
COMPARED = tuple(name for name in Changes.model_fields if name not in ("clip_score", "components"))
COMPARED_COMPONENT = ("parameters", "weights_bytes", "bits_per_weight", "resident_weights_bytes", "latency_s")


def build_report(evaluation: Evaluation) -> Report:
    """Return the report of a finished evaluation."""
    records, settings = evaluation.records, evaluation.settings
    judged_by, level = evaluation.scorer, evaluation.stopping.confidence
    confidence = level(FALSE_CALLS)
    scorer = None if judged_by is None else judged_by.name
    samples = collect_samples(evaluation, scorer)
    of_sides = {side: [r for r in records if isinstance(r, ProcessRecord) and r.side == side] for side in SIDES}
    last = {side: of_sides[side][-1] for side in SIDES}
    probed = _probed(records, settings, len(samples))
    original, compressed = (
        describe_side(
            evaluation.models[side], samples, of_sides[side], side, {} if probed is None else probed.macs[side]
        )
        for side in SIDES
    )
    variants = scored_variants(records, samples, scorer)
    noise_floor = describe_noise_floor(
        variants, settings.get("noise_floor", ()), evaluation.floor_not_measured, confidence
    )
    ran = {
        name: {side: getattr(last[side], name) for side in SIDES}
        for name in ("device", "device_name", "dtype", "threads")
    }
    defaults = {name: value for name, value in last["original"].defaults.items() if settings.get(name) is None}
    swaps = evaluation.swaps
    report = Report.model_validate(
        {
            "schema_version": SCHEMA_VERSION,
            "command": evaluation.command,
            "environment": {**evaluation.environment, **ran},
            "settings": {**settings, **defaults},
            "scorer": None if judged_by is None else {"name": scorer, "path": str(judged_by.path)},
            "original": original,
            "compressed": compressed,
            "change": compare_sides(original, compressed, samples, confidence),
            "similarity": describe_similarity(samples, confidence),
            "metrics": describe_metrics(samples, confidence),
            "set_metrics": describe_sets(records, scorer, len(samples)),
            "not_measured": why_not_measured(records, samples, scorer),
            "component_metrics": None if probed is None else probed.component_metrics,
            "noise_floor": noise_floor,
            "verdicts": judge(shown_pairs(samples), noise_floor, largest_psnr(samples), level),
            "attribution": None
            if swaps is None
            else describe_attribution(variants, samples, swaps, noise_floor, level),
            "gates": [],
            "samples": samples,
            "processes": {side: [_raw(record) for record in of_sides[side]] for side in SIDES},
            **evaluation.made_with,
        }
    )
    return report.model_copy(update={"gates": check_gates(report, evaluation.gates)})


def collect_samples(evaluation: Evaluation, scorer: str | None) -> list[Sample]:
    """Return one entry per drawing: what each side measured, every repeat of its latency included."""
    pictures: dict[tuple[int, Side], list[PictureRecord]] = {}
    scores: dict[int, ScoreRecord] = {}
    for record in evaluation.records:
        if isinstance(record, PictureRecord):
            pictures.setdefault((record.index, record.side), []).append(record)
        elif isinstance(record, ScoreRecord) and record.scorer == scorer:
            scores[record.index] = record
    samples = []
    for drawing in evaluation.drawings:
        score = scores[drawing.index]
        sides = {side: _sample_side(pictures[drawing.index, side], score.clip_score[side]) for side in SIDES}
        similarity = {name: getattr(score, name) for name in ("psnr_db", "identical", "ssim", "metrics")}
        samples.append(Sample(**drawing.to_json(), **sides, **similarity))
    return samples


def _sample_side(taken: Sequence[PictureRecord], clip_score: float | None) -> SampleSide:
    first = taken[0]
    return SampleSide(
        latency_s=[record.latency_s for record in taken],
        component_latency_s=[record.component_latency_s for record in taken],
        peak_memory_bytes=_largest(record.peak_memory_bytes for record in taken),
        peak_device_memory_bytes=_largest(record.peak_device_memory_bytes for record in taken),
        energy_j=[record.energy_j for record in taken],
        clip_score=clip_score,
        **{name: getattr(first, name) for name in (*FLAGS, "vae_upcast", "height", "width", "latents_sha256")},
        picture=f"images/{first.side}/{first.index:04d}.png",
    )


def _probed(records: Sequence[Record], settings: Mapping[str, Any], pictures: int) -> ComponentsRecord | None:
    if not settings.get("component_metrics"):
        return None
    wanted = min(settings["component_metrics_count"], pictures)  # a rerun may have asked for other counts
    return next((r for r in records if isinstance(r, ComponentsRecord) and r.pictures == wanted), None)


def describe_side(
    model: ModelFacts,
    samples: Sequence[Sample],
    processes: Sequence[ProcessRecord],
    side: Side,
    macs: Mapping[str, int | None],
) -> PipelineFigures:
    """Return one pipeline's costs and score: what its files say, and medians and means over its pictures.

    macs: component -> multiply-accumulates per picture (None: not counted).
    """
    taken = [sample.side(side) for sample in samples]
    latencies = [_median_of(each.latency_s) for each in taken]
    peak = _largest([*(each.peak_memory_bytes for each in taken), *(p.peak_memory_bytes for p in processes)])
    imports = _largest(process.resident_after_imports_bytes for process in processes)
    resident = processes[-1].resident_weights_bytes
    components = {}
    for name, facts in model.components.items():
        called = any(name in spent for each in taken for spent in each.component_latency_s)
        spent = [_median_of([run.get(name, 0.0) for run in each.component_latency_s]) for each in taken]
        components[name] = ComponentFigures(
            **asdict(facts),
            resident_weights_bytes=resident.get(name),
            macs=macs.get(name),
            latency_s=statistics.median(spent) if called else None,
        )
    clip = [each.side(side).clip_score for each in samples if each.drift is not None]
    return PipelineFigures(
        name=model.name,
        pipeline_class=model.pipeline_class,
        parameters=model.parameters,
        size_bytes=model.size_bytes,
        weights_bytes=model.weights_bytes,
        bits_per_weight=8 * model.weights_bytes / model.parameters if model.parameters else None,
        resident_weights_bytes=sum(resident.values()) if resident else None,
        peak_memory_bytes=peak,
        peak_memory_over_imports_bytes=None if peak is None or imports is None else peak - imports,
        peak_device_memory_bytes=_largest(each.peak_device_memory_bytes for each in taken),
        load_s=statistics.median([process.load_s for process in processes]),
        latency_s=statistics.median(latencies),
        latency_s_quantiles=statistics.quantiles(latencies),
        images_per_minute=60 / float(statistics.mean(latencies) or math.nan),
        energy_j=statistics.median([joules for each in taken for joules in each.energy_j if joules is not None]),
        macs=None if not macs or None in macs.values() else sum(value or 0 for value in macs.values()),
        clip_score=statistics.mean([score for score in clip if score is not None]),
        pictures=len(taken),
        **{flag: sum(getattr(each, flag) for each in taken) for flag in FLAGS},
        components=components,
        layers=model.layers,
    )


def compare_sides(
    original: PipelineFigures, compressed: PipelineFigures, samples: Sequence[Sample], confidence: float
) -> Changes:
    """Return difference and ratio of every figure; paired bootstrap intervals where there are samples to resample."""
    latencies = [[_median_of(sample.side(side).latency_s) for sample in samples] for side in SIDES]
    changes = {name: _change(getattr(original, name), getattr(compressed, name)) for name in COMPARED}
    changes["latency_s"]["ratio_interval_95"] = statistics.median_ratio_interval(latencies[0], latencies[1], confidence)
    drift = estimate(samples, [sample.drift for sample in samples], confidence)
    empty = ComponentFigures()
    components = {}
    for component in sorted({*original.components, *compressed.components}):
        before, after = (side.components.get(component, empty) for side in (original, compressed))
        components[component] = {
            name: Change(**_change(getattr(before, name), getattr(after, name))) for name in COMPARED_COMPONENT
        }
    return Changes(
        **{name: Change(**change) for name, change in changes.items()},
        clip_score=Change(
            **_change(original.clip_score, compressed.clip_score),
            interval_95=drift.interval_95,
            pairs=sum(sample.drift is not None for sample in samples),
        ),
        components=components,
    )


def describe_similarity(samples: Sequence[Sample], confidence: float) -> Similarity:
    """Return same-seed PSNR and SSIM over the pairs that show two pictures, and whether both sides began alike.

    The mean of PSNR is over the pairs that differ, since one identical pair would make it infinite.
    """
    shown = shown_pairs(samples)
    pairs = [sample for sample in shown if sample.ssim is not None]
    differing = [sample for sample in pairs if not sample.identical]
    psnr = [math.inf if sample.identical or sample.psnr_db is None else sample.psnr_db for sample in pairs]
    ssim = [sample.ssim for sample in pairs if sample.ssim is not None]
    psnr_estimate = estimate(differing, [sample.psnr_db for sample in differing], confidence)
    ssim_estimate = estimate(pairs, ssim, confidence)
    hashes = [(sample.original.latents_sha256, sample.compressed.latents_sha256) for sample in samples]
    known = all(first and second for first, second in hashes)
    return Similarity(
        pairs=len(pairs),
        pairs_blocked=len(samples) - len(shown),
        pairs_of_unlike_size=len(shown) - len(pairs),
        identical=len(pairs) - len(differing),
        identical_latents=all(first == second for first, second in hashes) if known else None,
        psnr_db=_spread(psnr_estimate.mean, psnr, psnr_estimate.interval_95),
        ssim=_spread(ssim_estimate.mean, ssim, ssim_estimate.interval_95),
    )


def _spread(mean: float | None, values: Sequence[float], interval: Any) -> Estimate:
    """`mean` is given, since that of PSNR is over fewer values; what is infinite becomes None."""
    median, least = statistics.median(values), min(values, default=None)
    finite = [None if value is None or math.isinf(value) else value for value in (median, least)]
    return Estimate(mean=mean, median=finite[0], min=finite[1], interval_95=interval)


def _change(original: float | None, compressed: float | None) -> dict[str, Any]:
    if original is None or compressed is None:
        return {"difference": None, "ratio": None}
    return {"difference": compressed - original, "ratio": compressed / original if original else None}


def _raw(record: ProcessRecord) -> dict[str, Any]:
    return {name: value for name, value in record.to_json().items() if name not in ("kind", "side")}


def _median_of(values: Sequence[float]) -> float:
    found = statistics.median(values)
    return math.nan if found is None else found


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)
