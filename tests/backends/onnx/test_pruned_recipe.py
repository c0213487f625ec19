"""The recipe that prunes, recovers, quantizes and exports, all in one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short_recipes import quick

from sdcompress import load_recipe, open_pipeline, open_source
from sdcompress.execution.execute import execute
from sdcompress.execution.verify import verify
from sdcompress.files.manifest import MANIFEST_NAME
from sdcompress.planning.plan import make_plan
from sdcompress.sources.opening import open_folder

RECIPE = "pruned-50-recovered-int8-onnx"


@pytest.fixture(scope="module")
def made(nano_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "out"
    execute(make_plan(quick(load_recipe(RECIPE)), open_source(str(nano_folder))), out)
    return out


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline("ab", num_inference_steps=2, output_type="np", generator=generator, height=16, width=16).images[0]


def test_predicted_is_actual(made: Path, nano_folder: Path) -> None:
    plan = make_plan(quick(load_recipe(RECIPE)), open_source(str(nano_folder)))
    unet = open_folder(made).components["unet"]
    before, after = plan.source.components["unet"].parameters, plan.after("unet")
    assert (unet.parameters, unet.weights_bytes) == (after.parameters, after.weights_bytes)
    assert unet.parameters <= before / 2
    assert verify(made) == []


def test_every_stage_left_its_trace(made: Path) -> None:
    manifest = json.loads((made / MANIFEST_NAME).read_text(encoding="utf-8"))
    unet = manifest["components"]["unet"]
    assert [next(iter(step)) for step in unet["steps"]] == ["prune", "recover", "cast", "quantize", "export"]
    assert len(unet["recovery"]["loss"]["means"]) == 2
    assert any(layer.get("activations") for layer in unet["layers"].values())
    assert set(manifest["activation_ranges"]) == {"text_encoder", "unet", "vae"}


def test_stock_optimum_draws_the_same(made: Path, open_stock: Callable[[Path], Any]) -> None:
    assert np.array_equal(draw(open_stock(made)), draw(open_pipeline(made, device="cpu", threads=1)))
