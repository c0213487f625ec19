"""Compressing uses the device: statistics of calibration, training, and rounding as on the CPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from random_weights import random
from stored_weights import LABELS, format_of, quantized

from sdcompress import load_recipe, open_source
from sdcompress.backends.torch.input_statistics import load_or_gather
from sdcompress.calibration.settings import Calibration
from sdcompress.execution.execute import execute
from sdcompress.execution.verify import verify
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import Recipe, parse_recipe

LAYERS = {
    "text_encoder": ["text_model.encoder.layers.1.mlp.fc2"],
    "unet": ["conv_in", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "conv_out"],
    "vae": ["decoder.conv_out"],
}


def test_statistics_as_on_the_cpu(nano_folder: Path, tmp_path: Path, device: str) -> None:
    """One step without guidance: float32 sums in another order, through some dozens of layers, and their squares."""
    calibration = Calibration(prompts=("a red apple", "two cats"), num_inference_steps=1, guidance_scale=1.0)
    source = open_source(str(nano_folder))
    found: dict[str, Any] = {}
    for where in ("cpu", device):
        gathered = load_or_gather(source, LAYERS, calibration, cache=tmp_path / where, device=where)
        found[where] = {part: dict(layers) for part, layers in gathered.items()}
    for part, layers in LAYERS.items():
        for layer in layers:
            here, there = found["cpu"][part][layer], found[device][part][layer]
            assert here.count == there.count
            for left, right in [(here.mean, there.mean), *zip(here.moments, there.moments, strict=True)]:
                error = float((left.double() - right.cpu().double()).norm() / left.double().norm())
                assert error < 400 * 2.0**-24, layer


@pytest.mark.parametrize("recipe", ["int4-gptq", "int3-gptq"])
def test_calibrated_recipes(recipe: str, nano_folder: Path, tmp_path: Path, device: str) -> None:
    """The statistics are gathered on whatever is chosen by itself: the GPU where there is one."""
    short = Calibration(prompts=("ab",), num_inference_steps=2)
    execute(make_plan(load_recipe(recipe).model_copy(update={"calibration": short}), open_source(str(nano_folder))),
            tmp_path / "out")  # fmt: skip
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recover_ten_steps(dtype: str, nano_folder: Path, tmp_path: Path, device: str) -> None:
    recipe = training_recipe(f"prompts: [ab, c], batch_size: 2, steps: 10, learning_rate: 0.003, dtype: {dtype}")
    manifest = execute(make_plan(recipe, open_source(str(nano_folder))), tmp_path / "out")
    facts = manifest.components["unet"].recovery
    losses = facts["loss"]["means"]
    assert facts["steps"] == 10 and len(losses) == 10
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    if device != "cpu":
        assert facts["device"].startswith(device)
    assert verify(tmp_path / "out") == []


def training_recipe(options: str) -> Recipe:
    return parse_recipe(
        "schema_version: 1\ndescription: T\ncomponents:\n  unet:\n"
        f"    - prune: {{drop_mid_block: true, layers_per_block: 1}}\n    - recover: {{{options}}}\n",
        "r.yaml",
    )


@pytest.mark.parametrize("label", LABELS)
def test_the_same_codes_as_on_the_cpu(label: str, device: str) -> None:
    """Rounding to nearest: a code may differ where a value lies in the middle of two, and then by one."""
    fmt, weight = format_of(label), random(24, 40, 3, 3)
    here, there = quantized(weight, fmt), quantized(weight.to(device), fmt)
    apart = (here.codes.int() - there.codes.cpu().int()).abs()
    assert int(apart.max()) <= 1 and float((apart > 0).float().mean()) < 1e-3
    assert there.codes.device.type == device
    for name in ("scale", "zero_point", "palette"):
        left, right = getattr(here, name), getattr(there, name)
        if left is not None:
            assert right.device.type == device
            # A step of float16, in which they are stored, or one of their 8 bits.
            assert torch.allclose(left.float(), right.cpu().float(), rtol=2 * 2.0**-11, atol=1 + 1e-7
                                  if not left.is_floating_point() else 1e-7)  # fmt: skip
