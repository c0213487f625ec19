"""From raw samples to the figures of a report."""

from __future__ import annotations

import json
import statistics as standard
from collections.abc import Callable
from typing import Any

import pytest

from sdcompress.report.pairing import by_prompt

Make = Callable[..., dict[str, Any]]


def test_figures_follow_from_the_samples(make_report: Make) -> None:
    report = make_report(count=5)
    original, change = report["original"], report["change"]
    assert original["latency_s"] == pytest.approx(standard.median([1.0, 1.1, 1.2, 1.3, 1.4]))
    assert original["latency_s_quantiles"]["p50"] == original["latency_s"]
    assert original["clip_score"] == pytest.approx(32.0)
    assert original["bits_per_weight"] == 16.0
    assert original["peak_memory_bytes"] == 400_000_000
    assert original["peak_memory_over_imports_bytes"] == 100_000_000
    assert original["components"]["unet"]["latency_s"] == pytest.approx(0.8)
    assert change["size_bytes"] == {"difference": -22_000_000, "ratio": pytest.approx(22.1 / 44.1)}
    assert change["latency_s"]["ratio"] == pytest.approx(0.5)
    assert change["latency_s"]["ratio_interval_95"] == pytest.approx([0.5, 0.5])
    assert change["clip_score"]["difference"] == pytest.approx(-0.48)
    low, high = change["clip_score"]["interval_95"]
    assert -0.601 < low < -0.48 < high < -0.399  # no resample leaves the range of the differences
    assert change["components"]["unet"]["latency_s"]["ratio"] == pytest.approx(0.5)
    assert report["similarity"]["psnr_db"]["mean"] == pytest.approx(42.0)
    assert report["similarity"]["psnr_db"]["min"] == 40.0
    assert report["settings"]["num_inference_steps"] == 50  # left to the pipeline, so its default is told
    assert report["settings"]["guidance_scale"] == 3.0


def test_both_sides_and_the_change_have_the_same_keys(make_report: Make) -> None:
    report = make_report()
    assert report["original"].keys() == report["compressed"].keys()
    figures = {"parameters", "size_bytes", "weights_bytes", "peak_memory_bytes", "load_s", "latency_s", "clip_score"}
    assert figures | {"peak_memory_over_imports_bytes", "components"} <= report["change"].keys()
    assert figures <= report["original"].keys()


def test_identical_pictures_are_strict_json(make_report: Make) -> None:
    report = make_report(identical=True, drift=0.0)
    text = json.dumps(report, allow_nan=False)
    assert json.loads(text) == report
    similarity = report["similarity"]
    assert similarity["identical"] == similarity["pairs"] == 4
    assert similarity["psnr_db"] == {"mean": None, "median": None, "min": None, "interval_95": None}
    assert similarity["ssim"]["min"] == 1.0
    assert similarity["identical_latents"] is True


def test_blocked_pictures_are_counted_and_left_out_of_quality(make_report: Make) -> None:
    report = make_report(count=4, blocked=(3,))
    assert (report["original"]["blocked"], report["compressed"]["blocked"]) == (0, 1)
    assert report["change"]["clip_score"]["pairs"] == report["similarity"]["pairs"] == 3
    assert report["similarity"]["pairs_blocked"] == 1
    assert len(report["samples"]) == 4


def test_all_blocked_leaves_nothing_to_compare(make_report: Make) -> None:
    report = make_report(count=2, blocked=(0, 1))
    assert report["change"]["clip_score"]["difference"] is None
    assert report["similarity"]["ssim"] == {"mean": None, "median": None, "min": None, "interval_95": None}


def test_a_component_only_one_side_has(make_report: Make) -> None:
    report = make_report()

    models = {"original": report["original"], "compressed": {**report["compressed"], "components": {}}}
    changed = make_report(models=models)
    assert changed["change"]["components"]["unet"]["parameters"] == {"difference": None, "ratio": None}


def test_seeds_of_one_prompt_are_one_sample() -> None:
    samples = [{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}]
    assert by_prompt(samples, [1.0, 3.0, 5.0]) == [2.0, 5.0]
