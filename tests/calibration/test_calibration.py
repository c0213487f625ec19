"""What is calibrated on: prompts apart from the evaluation's, and settings that survive being written down."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sdcompress import open_source
from sdcompress.calibration.prompts import default_prompts
from sdcompress.calibration.settings import Calibration, choose_prompts
from sdcompress.errors import RecipeError
from sdcompress.evaluation.settings import EvaluationSettings, list_drawings


def evaluated(model: str) -> set[str]:
    drawings = list_drawings(EvaluationSettings(), default_prompts(tiny_sd=model == "tiny-sd"))
    return {drawing.prompt for drawing in drawings}


@pytest.mark.parametrize("model", ["tiny-sd", "sd15"])
def test_default_prompts_are_not_those_of_the_evaluation(model: str) -> None:
    chosen = choose_prompts(Calibration(), open_source(model))
    assert len(set(chosen.prompts)) == 8
    assert not evaluated(model) & set(chosen.prompts)
    assert set(chosen.prompts) < set(default_prompts(tiny_sd=model == "tiny-sd").prompts)


def test_more_prompts_than_the_evaluation_leaves() -> None:
    source = open_source("sd15")  # 24 general prompts, of which an evaluation takes 16
    chosen = choose_prompts(Calibration(prompt_count=11), source).prompts
    assert len(set(chosen)) == 11 and len(evaluated("sd15") & set(chosen)) == 3
    assert set(choose_prompts(Calibration(prompt_count=24), source).prompts) == set(default_prompts(False).prompts)
    with pytest.raises(RecipeError, match=r"calibration\.prompt_count: 25 prompts asked for, but general has 24"):
        choose_prompts(Calibration(prompt_count=25), source)


def test_sampler_settings_are_the_prompt_sets_unless_said() -> None:
    chosen = choose_prompts(Calibration(), open_source("tiny-sd"))
    assert (chosen.num_inference_steps, chosen.guidance_scale) == (20, 3.0)
    chosen = choose_prompts(Calibration(num_inference_steps=3, guidance_scale=0), open_source("tiny-sd"))
    assert (chosen.num_inference_steps, chosen.guidance_scale) == (3, 0)
    chosen = choose_prompts(Calibration(), open_source("sd15"))
    assert (chosen.num_inference_steps, chosen.guidance_scale) == (None, None)


def test_prompts_of_ones_own() -> None:
    calibration = Calibration.model_validate({"prompts": ["a cat", "a dog"]})
    assert calibration.prompt_count == 2
    assert choose_prompts(calibration, open_source("tiny-sd")).prompts == ("a cat", "a dog")


@pytest.mark.parametrize("settings", [{}, {"prompts": ["a cat"]}, {"height": 64, "seed": 3, "range": "percentile"}])
def test_round_trip(settings: dict[str, Any]) -> None:
    calibration = Calibration.model_validate(settings)
    assert Calibration.model_validate(calibration.model_dump(mode="json")) == calibration


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"prompts": []}, "at least 1 item"),
        ({"prompts": ["a cat"], "prompt_count": 2}, "all 1 prompts are used"),
        ({"prompt_count": 0}, "greater than or equal to 1"),
        ({"height": 60}, "multiple of 8"),
        ({"range": "entropy"}, "'mse', 'minmax' or 'percentile'"),
        ({"steps": 4}, "Extra inputs"),
    ],
)
def test_what_cannot_be_asked_for(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Calibration.model_validate(settings)


def test_pictures_begin_with_other_noise_than_evaluations():
    """torch's generator for CPUs heeds the lowest 32 bits of a seed; evaluations count from 0."""
    import torch

    from sdcompress.calibration.settings import FIRST_SEED

    def noise(seed):
        return float(torch.randn(1, generator=torch.Generator().manual_seed(seed)))

    assert not {noise(seed) for seed in range(64)} & {noise(FIRST_SEED + place) for place in range(64)}
