"""Scores of pictures that a pipeline drew, against slow implementations of each figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from in_process import InProcess, evaluate
from PIL import Image
from test_similarity import _slow_ms_ssim, _slow_ssim

from sdcompress import compress
from sdcompress.calibration.prompts import PromptSet
from sdcompress.evaluation.metrics.ms_ssim import SMALLEST_SIDE
from sdcompress.evaluation.settings import EvaluationSettings
from sdcompress.planning.recipe import parse_recipe

RECIPE = "schema_version: 1\ndescription: d\ncomponents: {unet: [{quantize: {format: int3}}]}\n"
SETTINGS = EvaluationSettings(
    prompts=PromptSet("one", ("a red apple",), 1),
    num_inference_steps=2,
    height=176,
    width=192,
    threads=1,
    device="cpu",
    noise_floor=(),
    component_metrics=False,
)


def test_figures_of_drawn_pictures_are_those_of_their_definitions(in_process: type[InProcess], tmp_path: Path) -> None:
    compress("tiny-sd", parse_recipe(RECIPE, "test"), tmp_path / "coarse")
    report = evaluate("tiny-sd", str(tmp_path / "coarse"), tmp_path / "out", settings=SETTINGS)
    assert "ms_ssim" not in report["not_measured"] and report["metrics"]["ms_ssim"]["unit"] == "1"
    for sample in report["samples"]:
        pictures = [
            np.asarray(Image.open(tmp_path / "out" / sample[side]["picture"])) for side in ("original", "compressed")
        ]
        assert pictures[0].shape == (SMALLEST_SIDE, 192, 3)
        # Both in float64, so they agree far closer; a report prints no digit below 1e-4.
        assert sample["metrics"]["ms_ssim"] == pytest.approx(_slow_ms_ssim(*pictures), abs=1e-4)
        assert sample["ssim"] == pytest.approx(_slow_ssim(*pictures), abs=1e-4)
        error = ((pictures[0].astype(float) - pictures[1].astype(float)) ** 2).mean()
        assert sample["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-4)
        assert 0.2 < sample["metrics"]["ms_ssim"] < 0.9999  # 3 bits change the picture, and leave it one
