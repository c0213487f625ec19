"""The smooth step: the component computes what it did, and what follows is calibrated on scaled inputs."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from sdcompress.backends.component import Component
from sdcompress.backends.torch.input_statistics import load_or_gather
from sdcompress.execution.execute import execute
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.planning.steps.smooth import Smooth
from sdcompress.progress import silent
from sdcompress.sources.opening import open_source

RECIPE = """
schema_version: 1
description: T
components:
  unet: [{smooth: {format: uint2, group_size: 16}}]
calibration: {prompts: [ab, c], num_inference_steps: 2}
"""


def test_the_component_computes_what_it_did(nano_folder: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    plan = make_plan(parse_recipe(RECIPE, "r"), open_source(str(nano_folder)))
    execute(plan, tmp_path / "out")
    before, after = (
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet") for folder in (nano_folder, tmp_path / "out")
    )
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 16, 32, generator=generator)
    with torch.no_grad():
        wanted, given = (model(latents, 7, text).sample for model in (before, after))
    # Scales are no powers of two: each tensor they touch is rounded once more in float32, 1e-7 of its values.
    assert torch.allclose(given, wanted, atol=2e-5)
    changed = [name for name, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[name])]
    assert any(".attn1.to_q" in name for name in changed) and any(".norm3" in name for name in changed)


def test_statistics_are_those_of_the_scaled_inputs(nano_folder: Path, tmp_path: Path) -> None:
    """A layer's output W x is (W s)(x / s): so W M W^T stays what it is."""
    source = open_source(str(nano_folder))
    recipe = parse_recipe(RECIPE, "r")
    step = Smooth(format="uint2", group_size=16)
    planned = step.plan(source.components["unet"], "torch")
    gathered = load_or_gather(source, {"unet": planned.calibrated}, recipe.calibration, silent, tmp_path)
    weights = load_file(nano_folder / "unet" / "diffusion_pytorch_model.safetensors")
    part = step.apply(Component(source.components["unet"], weights.__getitem__, gathered["unet"]), planned)
    assert set(part.statistics) == set(planned.calibrated)
    for layer in planned.calibrated:
        outputs = [
            weight @ statistics.moments[0] @ weight.T
            for weight, statistics in (
                (weights[f"{layer}.weight"].flatten(1), gathered["unet"][layer]),
                (part.read(f"{layer}.weight").flatten(1), part.statistics[layer]),
            )
        ]
        if not layer.endswith(("to_v", "net.0.proj")):  # their rows are scaled too, for the layers behind them
            assert torch.allclose(*outputs, rtol=1e-3, atol=1e-4 * float(outputs[0].abs().max()))  # float32 sums
