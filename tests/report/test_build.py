"""From raw samples to the figures of a report, and from the report to report.json and back."""

from __future__ import annotations

import json
import statistics as standard
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdcompress.report import Report, read_report
from sdcompress.report.findings import findings
from sdcompress.report.markdown import to_markdown
from sdcompress.report.pairing import by_prompt

Make = Callable[..., Report]
# Written by the version before reports were typed, of the samples that `make_report(whole=True)` has.
FIRST = Path(__file__).parent / "report_schema_1.json"


def test_figures_follow_from_the_samples(make_report: Make) -> None:
    report = make_report(count=5)
    original, change = report.original, report.change
    assert original.latency_s == pytest.approx(standard.median([1.0, 1.1, 1.2, 1.3, 1.4]))
    assert original.latency_s_quantiles["p50"] == original.latency_s
    assert original.clip_score == pytest.approx(32.0)
    assert original.bits_per_weight == 16.0
    assert (original.peak_memory_bytes, original.peak_memory_over_imports_bytes) == (400_000_000, 100_000_000)
    assert original.components["unet"].latency_s == pytest.approx(0.8)
    assert change.size_bytes.difference == -22_000_000 and change.size_bytes.ratio == pytest.approx(22.1 / 44.1)
    assert change.latency_s.ratio == pytest.approx(0.5)
    assert change.latency_s.ratio_interval_95 == pytest.approx((0.5, 0.5))
    assert change.clip_score.difference == pytest.approx(-0.48)
    low, high = change.clip_score.interval_95
    assert -0.601 < low < -0.48 < high < -0.399  # no resample leaves the range of the differences
    assert change.components["unet"]["latency_s"].ratio == pytest.approx(0.5)
    assert (report.similarity.psnr_db.mean, report.similarity.psnr_db.min) == (pytest.approx(42.0), 40.0)
    assert report.settings.num_inference_steps == 50  # left to the pipeline, so its default is told
    assert report.settings.guidance_scale == 3.0


def _approximate(value: Any) -> Any:
    """Floats are equal to a rounding: the libraries that average and resample may change."""
    if isinstance(value, dict):
        return {key: _approximate(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_approximate(each) for each in value]
    return pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value


def test_report_json_is_what_it_always_was(make_report: Make) -> None:
    first = json.loads(FIRST.read_text())
    assert make_report(whole=True).to_dict() == _approximate(first)
    assert read_report(FIRST).to_dict() == first


def test_keys_of_other_versions_survive_and_missing_ones_are_unmeasured(make_report: Make, tmp_path: Path) -> None:
    old = make_report().to_dict() | {"key of a later version": 1}
    for name in ("metrics", "set_metrics", "verdicts", "noise_floor", "attribution", "gates", "processes"):
        del old[name]
    del old["compressed"]["layers"]
    (tmp_path / "report.json").write_text(json.dumps(old))
    report = read_report(tmp_path)
    assert report.to_dict() == old
    assert (report.verdicts, report.noise_floor, report.compressed.layers) == ({}, None, [])
    assert "Outputs are measured" not in to_markdown(report)


def test_identical_pictures_are_strict_json(make_report: Make) -> None:
    report = make_report(identical=True, drift=0.0)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()
    similarity = report.similarity
    assert similarity.all_identical and similarity.identical == 4 and similarity.identical_latents is True
    assert set(similarity.psnr_db.model_dump().values()) == {None} and similarity.ssim.min == 1.0


def test_blocked_pictures_are_counted_and_left_out_of_quality(make_report: Make) -> None:
    report = make_report(count=4, blocked=(3,))
    assert (report.original.blocked, report.compressed.blocked) == (0, 1)
    assert report.change.clip_score.pairs == report.similarity.pairs == 3
    assert report.similarity.pairs_blocked == 1 and len(report.samples) == 4
    nothing = make_report(count=2, blocked=(0, 1))
    assert nothing.change.clip_score.difference is None
    assert set(nothing.similarity.ssim.model_dump().values()) == {None}


def test_several_looks_widen_every_interval(make_report: Make, alter: Callable[..., Report]) -> None:
    once, often = make_report(count=8, looks=(8,)), make_report(count=8, looks=(8, 16, 32))
    for name in ("psnr_db", "ssim"):
        narrow, wide = (getattr(report.similarity, name).interval_95 for report in (once, often))
        assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert once.verdicts["clip_score"].reason.startswith("its 95 % interval")
    assert often.verdicts["clip_score"].reason.startswith("its 97.92 % interval")
    stopping = {"looks": [8, 16, 32], "prompts": 8, "reason": "it is narrow enough", "interval_level": 0.979}
    told = findings(alter(often, {"settings.stopping": stopping}))
    assert any(line.startswith("Drawing stopped after 8 of 32 prompts: it is narrow enough.") for line in told)


def test_seeds_of_one_prompt_are_one_sample(make_report: Make) -> None:
    samples = make_report(count=3).samples
    twice = [samples[0], samples[0].model_copy(update={"seed": 9}), samples[1]]
    assert by_prompt(twice, [1.0, 3.0, 5.0]) == [2.0, 5.0]
