"""What was gained and what was lost, in sentences; what did not improve is said as plainly as what did."""

from __future__ import annotations

from collections.abc import Iterator

from sdcompress.evaluation.samples import SIDES
from sdcompress.report.model import ReportData
from sdcompress.report.number_text import interval_text, number_text, signed_text
from sdcompress.report.quality_model import Sample
from sdcompress.report.sample_metrics import PAIR_METRICS, SET_METRICS
from sdcompress.report.table import as_cell
from sdcompress.report.tables import pipeline_table

FEW_PROMPTS = 6  # below, bootstrap intervals are too narrow: of normal samples they cover 94 % at 6, 89 % at 4

METHOD = (
    "Each pipeline ran in a fresh process, one at a time, their pictures in turn (original, compressed, compressed, "
    "original, ...) after one warm-up. Peak memory is that of the whole process; 'after imports' leaves out what "
    "Python and its libraries take before a model is opened. Time per picture is the median, time to load that of one "
    "load. Intervals are 95 % bootstrap intervals over prompts (expanded percentiles), 10,000 resamples."
)
FLAGS = {
    "blocked": "blocked by the safety checker (left out of CLIP, PSNR and SSIM)",
    "not_finite": "with NaN or infinite pixels",
    "flat": "of one flat colour",
}


def findings(report: ReportData) -> list[str]:
    """Return the sentences: quality first, then costs, then what limits both, then what was not measured."""
    return [
        *_drift(report),
        *_similarity(report),
        *_costs(report),
        *_pictures(report),
        *_limits(report),
        *_not_measured(report),
    ]


def subject_text(report: ReportData) -> str:
    """Return one line that says what was compared and how."""
    settings, environment = report.settings, report.environment
    pictures, threads = report.original.pictures, environment.threads["original"]
    device = environment.device_name["original"] or environment.device["original"]
    dtypes = dict.fromkeys(str(environment.dtype[side]) for side in SIDES)
    parts = (
        f"{pictures} picture{'s' * (pictures != 1)}",
        f"{settings.num_inference_steps} steps",
        f"guidance {settings.guidance_scale}",
        *([] if settings.strength is None else [f"strength {settings.strength}"]),
        f"{device} {' / '.join(dtypes)}",
        f"{threads} thread{'s' * (threads != 1)}",
    )
    return ", ".join(parts)


def sample_note(sample: Sample) -> str:
    """Return what is special about a pair's pictures: identical, blocked, flat or not finite."""
    told = ["identical"] if sample.identical else []
    for flag, word in (("blocked", "blocked"), ("flat", "one flat colour"), ("not_finite", "not finite")):
        sides = [side for side in SIDES if getattr(sample.side(side), flag)]
        if sides:
            told.append(f"{word}: {' and '.join(sides)}")
    return "; ".join(told)


def _drift(report: ReportData) -> Iterator[str]:
    if report.scorer is None:
        yield "CLIP score: not measured (no scorer was used)."
        return
    change, name = report.change.clip_score, report.scorer.name
    if change.difference is None:
        yield f"CLIP score by {name}: there is no pair of pictures to score."
        return
    told = f"CLIP score by {name}: drift {signed_text(change.difference)}"
    if change.interval_95 is None:
        yield f"{told} over {change.pairs} pairs; there are too few prompts for an interval."
        return
    told = f"{told} {interval_text(change.interval_95, signed_text)} over {change.pairs} pairs"
    verdict = report.verdicts.get("clip_score")
    yield f"{told}." if verdict is None else f"{told}: {verdict.verdict}, since {verdict.reason}."


def _similarity(report: ReportData) -> Iterator[str]:
    similarity = report.similarity
    pairs, psnr, ssim = similarity.pairs, similarity.psnr_db, similarity.ssim
    if not pairs:
        yield "Same-seed similarity: there is no pair of pictures to compare."
    elif similarity.all_identical:
        yield f"Same-seed similarity: all {pairs} pairs are identical to the pixel (PSNR infinite, SSIM 1)."
    else:
        same = f"; {similarity.identical} identical pairs are left out of the PSNR" if similarity.identical else ""
        yield (
            f"Same-seed similarity over {pairs} pairs: PSNR {number_text(psnr.mean, 1)} dB "
            f"(lowest {number_text(psnr.min, 1)}), SSIM {number_text(ssim.mean, 3)} "
            f"(lowest {number_text(ssim.min, 3)}){same}."
        )
    judged = {name: verdict for name, verdict in report.verdicts.items() if name != "clip_score"}
    quiet = [PAIR_METRICS[name].words for name, verdict in judged.items() if verdict.verdict == "within noise"]
    for name, verdict in judged.items():
        if verdict.verdict != "within noise":
            yield f"{PAIR_METRICS[name].words} is {verdict.verdict}: {verdict.reason}."
    if quiet:
        yield f"Within noise: {', '.join(quiet)}."


def _costs(report: ReportData) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for label, _, _, change, verdict in pipeline_table(report).rows:
        if label != "CLIP score":
            groups.setdefault(as_cell(verdict).text, []).append(f"{label} {as_cell(change).brief}")
    for verdict, words in (("better", "Improved"), ("similar", "About the same"), ("worse", "Not improved")):
        if verdict in groups:
            yield f"{words}: {', '.join(groups[verdict])}."


def _pictures(report: ReportData) -> Iterator[str]:
    """What is wrong with single pictures, and what they were drawn from besides prompts."""
    for flag, what in FLAGS.items():
        counts = [getattr(report.side(side), flag) for side in SIDES]
        if any(counts):
            yield f"Pictures {what}: {counts[0]} original, {counts[1]} compressed."
    counts = [sum(bool(sample.side(side).vae_upcast) for sample in report.samples) for side in SIDES]
    if any(counts):
        yield (
            f"Pictures whose VAE overflowed float16 and decoded again in higher precision, which their time includes: "
            f"{counts[0]} original, {counts[1]} compressed."
        )
    for name, given in report.settings.input_pictures.items():
        if not isinstance(given, str):
            given = given[0]["path"] if len(given) == 1 else f"{len(given)} files, by turns, from {given[0]['path']} on"
        yield f"Both were given the same {name}: {given}."


def _limits(report: ReportData) -> Iterator[str]:
    """What makes the figures say less."""
    similarity = report.similarity
    if similarity.identical_latents is False:
        yield "Note: the two pipelines did not start from the same latents, so PSNR and SSIM mean little."
    elif similarity.identical_latents is None:
        yield "Note: a pipeline did not tell its initial latents, so it is not certain that both began alike."
    if similarity.pairs_of_unlike_size:
        yield f"Note: {similarity.pairs_of_unlike_size} pairs differ in size and have no PSNR or SSIM."
    stopping = report.settings.stopping
    if stopping is not None and len(stopping.looks) > 1:
        yield f"Drawing stopped after {stopping.prompts} of {stopping.looks[-1]} prompts: {stopping.reason}."
        yield (
            f"Note: intervals are at {100 * stopping.interval_level:.4g} %, since drawing could have stopped at "
            f"{len(stopping.looks)} looks; all of them together miss with 5 %."
        )
    prompts = len({sample.prompt for sample in report.samples})
    if prompts < FEW_PROMPTS:
        yield f"Note: intervals from so few prompts ({prompts}) are too narrow; use at least {FEW_PROMPTS}."
    for name, kind in SET_METRICS.items():
        figure = report.set_metrics.get(name)
        if figure is not None and not figure.reliable:
            yield (
                f"{kind.words} is unreliable: it was measured over {figure.pictures} pictures and needs "
                f"{figure.enough_pictures}; compare it only with another seed's, over equally many."
            )


def _not_measured(report: ReportData) -> Iterator[str]:
    kinds = {**PAIR_METRICS, **SET_METRICS}
    if report.noise_floor is None:
        yield "Not measured: noise floor (not asked for, so similarity has no verdict)."
    else:
        for source, why in report.noise_floor.not_measured.items():
            yield f"Not measured: noise in {source} ({why})."
    for name, why in report.not_measured.items():
        yield f"Not measured: {kinds[name].words if name in kinds else name} ({why})."
