"""Where skip connections join, from the config alone, against the real modules and a real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from sdcompress import open_source
from sdcompress.families.skips import skip_splits
from sdcompress.sources import catalog

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "models"


def published(name: str) -> dict[str, Any]:
    file = REFERENCE / name / "unet" / "config.json"
    if not file.is_file():
        pytest.skip(f"the published config {file} is not on this machine")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def known(name: str) -> dict[str, Any]:
    return dict(open_source(name).components["unet"].config)


def shortcuts(config: dict[str, Any]) -> dict[str, int]:
    """Shortcut convolution of an up block -> its input channels, in the real model."""
    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(config)
    return {
        name: module.in_channels
        for name, module in model.named_modules()
        if name.startswith("up_blocks.") and name.endswith(".conv_shortcut")
    }


@pytest.mark.parametrize(
    "name", ["tiny-sd", *(n for n in catalog.names() if "unet" in catalog.load_entry(n).components)]
)
def test_known_architectures(name: str) -> None:
    splits = skip_splits(known(name))
    assert {layer: sum(parts) for layer, parts in splits.items()} == shortcuts(known(name))
    assert len(splits) > 5


@pytest.mark.parametrize("name", ["stable-diffusion-v1-5", "stable-diffusion-2-1", "stable-diffusion-xl-base-1.0"])
def test_published_configs(name: str) -> None:
    splits = skip_splits(published(name))
    assert {layer: sum(parts) for layer, parts in splits.items()} == shortcuts(published(name))


def test_sd15_by_hand() -> None:
    splits = skip_splits(known("sd15"))
    assert splits["up_blocks.0.resnets.2.conv_shortcut"] == (1280, 1280)
    assert splits["up_blocks.1.resnets.2.conv_shortcut"] == (1280, 640)
    assert splits["up_blocks.3.resnets.0.conv_shortcut"] == (640, 320)
    assert splits["up_blocks.3.resnets.1.conv_shortcut"] == (320, 320)


@pytest.mark.parametrize("layers_per_block", [1, 3, [1, 2, 3]])
@pytest.mark.parametrize("widths", [(32, 64, 96), (64, 32, 96), (32, 32, 32)])
def test_the_parts_are_what_was_joined(layers_per_block: int | list[int], widths: tuple[int, ...]) -> None:
    """In a real run the first part is the preceding module's output, and what is joined to it the second."""
    config = {
        "_class_name": "UNet2DConditionModel", "block_out_channels": widths, "layers_per_block": layers_per_block,
        "down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D"], "sample_size": 8,
        "up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D"], "norm_num_groups": 8, "cross_attention_dim": 16,
        "attention_head_dim": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    model = UNet2DConditionModel.from_config(config)
    splits = skip_splits(config)
    assert {layer: sum(parts) for layer, parts in splits.items()} == shortcuts(config)
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def remember(name: str) -> Any:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            inputs[name], outputs[name] = args[0], output

        return hook

    for name, module in model.named_modules():
        if name.endswith((".conv_shortcut", "upsamplers.0", "mid_block")) or name.split(".")[-2:-1] == ["resnets"]:
            module.register_forward_hook(remember(name))
    with torch.no_grad():
        model(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 3, 16))
    for layer, (hidden, _) in splits.items():
        _, block, _, resnet, _ = layer.split(".")
        if int(resnet):
            before = outputs[f"up_blocks.{block}.resnets.{int(resnet) - 1}"]
        else:
            before = outputs[f"up_blocks.{int(block) - 1}.upsamplers.0"] if int(block) else outputs["mid_block"]
        assert before.shape[1] == hidden
        assert torch.equal(inputs[layer][:, :hidden], before)


def test_other_classes_have_none() -> None:
    assert skip_splits(dict(open_source("tiny-sd").components["vae"].config)) == {}
    assert skip_splits(dict(open_source("tiny-sd").components["text_encoder"].config)) == {}
