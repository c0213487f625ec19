"""What can be swapped, and what is refused before anything is drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.attribution import plan_attribution
from sdcompress.sources.opening import open_source


def test_every_component_with_weights_is_a_swap() -> None:
    source = open_source("tiny-sd")
    swaps = plan_attribution(source, source).swaps
    assert {swap.name for swap in swaps} == {"text_encoder", "unet", "vae", "safety_checker"}
    assert all(swap.saved_bytes == 0 and swap.steps == [] and swap.after_steps == () for swap in swaps)
    assert all("no artifact of sdcompress" in (swap.steps_not_measured or "") for swap in swaps)
    without = replace(source, components={"unet": source.components["unet"]})
    assert [swap.name for swap in plan_attribution(without, source).swaps] == ["unet"]


def test_what_does_not_fit_is_refused() -> None:
    source = open_source("tiny-sd")
    onnx = replace(source, format="onnx")
    with pytest.raises(EvaluationError, match="give the torch pipeline as the original"):
        plan_attribution(onnx, source)
    other = replace(source, model_index={**source.model_index, "_class_name": "FluxPipeline"})
    with pytest.raises(EvaluationError, match="a StableDiffusionPipeline, the compressed a FluxPipeline"):
        plan_attribution(source, other)
    with pytest.raises(EvaluationError, match="no component with weights in common"):
        plan_attribution(replace(source, components={}), source)
