"""Verdicts on simulated pipelines: a pipeline against itself is within noise, a spoiled one is worse."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from sdcompress.evaluation.stopping import Stopping
from sdcompress.report import Report
from sdcompress.report.quality_model import FloorSource, NoiseFloor, VariantSample, Verdict
from sdcompress.report.verdicts import drift_floor, judge

PROMPTS, REDRAWN = 16, 8
EXACT = Stopping((PROMPTS,), PROMPTS, "").confidence
LARGEST = dict.fromkeys(range(PROMPTS), 10 * math.log10(255**2 * 3 * 512**2))


def _pair(index: int, drift: float, psnr_db: float | None, ssim: float) -> VariantSample:
    identical = psnr_db is None
    prompt = f"prompt {index}"
    return VariantSample(
        index=index, prompt=prompt, clip_score_difference=drift, psnr_db=psnr_db, identical=identical, ssim=ssim
    )


def _floor(**sources: list[VariantSample]) -> NoiseFloor:
    return NoiseFloor(sources={name: FloorSource(label=name, samples=pairs) for name, pairs in sources.items()})


def _likeness(generator: np.random.Generator, psnr_db: float) -> tuple[float, float]:
    """PSNR around a level, and an SSIM that goes with it."""
    psnr = generator.normal(psnr_db, 3.0)
    return psnr, float(1 - 10 ** (-psnr / 15) * generator.lognormal(0, 0.2))


def _simulate(
    seed: int, psnr_db: float = 45.0, drift: float = 0.0, spread: float = 0.3, sources: tuple[str, ...] = ("seed",)
) -> dict[str, Verdict]:
    """Return the verdicts on a pipeline whose arithmetic differs as bfloat16's does (45 dB), or by more."""
    generator = np.random.default_rng(seed)
    pairs = [_pair(i, generator.normal(drift, spread), *_likeness(generator, psnr_db)) for i in range(PROMPTS)]
    levels = {"seed": (12.0, 1.5), "bfloat16": (45.0, 0.3)}
    floor = {}
    for source in sources:
        level, moves = levels[source]
        floor[source] = [_pair(2 * i, generator.normal(0, moves), *_likeness(generator, level)) for i in range(REDRAWN)]
    return judge(pairs, _floor(**floor), LARGEST, EXACT)


@pytest.mark.parametrize(("sources", "repetitions"), [(("seed", "bfloat16"), 100), (("bfloat16",), 300)])
def test_a_pipeline_against_itself_is_within_noise(sources: tuple[str, ...], repetitions: int) -> None:
    """With the default sources 1.5 % of reports call a drift (of 1,500), with the tighter floor of one source 3 %."""
    quiet = 0
    for seed in range(repetitions):
        verdicts = _simulate(seed, sources=sources)
        assert set(verdicts) == {"clip_score", "psnr_db", "ssim"}
        quiet += all(each.verdict == "within noise" for each in verdicts.values())
    assert quiet >= 0.95 * repetitions


def test_a_spoiled_pipeline_is_worse() -> None:
    by_psnr = by_clip = 0
    for seed in range(100):
        # int3 on tiny-sd: 22 dB and 5 points of CLIP score (FACTS.md); pictures differ in how much they lose.
        verdicts = _simulate(seed, psnr_db=22.0, drift=-5.0, spread=4.0, sources=("seed", "bfloat16"))
        by_psnr += verdicts["psnr_db"].verdict == "worse"
        by_clip += verdicts["clip_score"].verdict == "worse"
        assert verdicts["psnr_db"].effect < -15
    assert by_psnr == 100  # 23 dB at a standard error of 1.5
    assert by_clip >= 95  # a drift of five standard errors


def test_closer_than_rounding_is_within_noise_and_higher_scores_are_better() -> None:
    verdicts = _simulate(1, psnr_db=60.0, drift=3.0, sources=("seed", "bfloat16"))
    assert verdicts["psnr_db"].verdict == "within noise" and verdicts["psnr_db"].effect > 10
    assert verdicts["clip_score"].verdict == "better"
    low, high = verdicts["clip_score"].interval_95
    assert low < verdicts["clip_score"].effect < high


def test_a_real_drift_smaller_than_redrawing_moves_is_within_noise() -> None:
    alone = _simulate(3, drift=-0.4, spread=0.05, sources=("bfloat16",))["clip_score"]
    beside_seeds = _simulate(3, drift=-0.4, spread=0.05, sources=("seed",))["clip_score"]
    assert alone.verdict == "worse" and alone.floor < 0.4
    assert beside_seeds.verdict == "within noise" and "redrawing the original (seed)" in beside_seeds.reason
    assert beside_seeds.floor > 0.4


def test_the_floor_is_what_95_of_100_redrawings_stay_under() -> None:
    generator = np.random.default_rng(0)
    floor = drift_floor(generator.normal(0, 2, 4000).tolist(), prompts=16)
    means = np.abs(generator.normal(0, 2, (4000, 16)).mean(axis=1))
    assert (means <= floor).mean() == pytest.approx(0.95, abs=0.02)  # both are of 4000: standard errors near 0.5 %


def test_without_other_arithmetic_similarity_has_no_verdict() -> None:
    assert set(_simulate(0)) == {"clip_score"}
    assert judge([_pair(0, 1.0, 40.0, 0.9)], None, LARGEST, EXACT) == {}


def test_identical_pictures_are_within_noise_of_identical_pictures(make_report: Callable[..., Report]) -> None:
    same = [_pair(i, 0.0, None, 1.0) for i in range(4)]
    verdicts = judge(same, _floor(batch=same), LARGEST, EXACT)
    assert {each.verdict for each in verdicts.values()} == {"within noise"}
    assert verdicts["psnr_db"].effect == 0
    report = make_report(identical=True, drift=0.0, whole=True)
    assert report.similarity.psnr_db.mean is None and report.verdicts["psnr_db"].verdict == "within noise"
