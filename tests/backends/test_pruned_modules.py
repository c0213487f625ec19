"""Pipelines pruned apart from stock configs: they open with stock loaders, quantized or not, and export to ONNX."""

import json

import numpy as np
import pytest
import torch

from sdcompress.backends.torch.loading import open_pipeline
from sdcompress.backends.torch.pruned_modules import rebuild
from sdcompress.errors import ArtifactError
from sdcompress.execution.execute import execute
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.sources.opening import open_source
from sdcompress.sources.pruned_config import Pruning

HEAD = "schema_version: 1\ndescription: T\n{target}components:\n  unet:\n"
PRUNE = (
    '    - prune: {remove: ["mid_block.attentions.0", "up_blocks.0.resnets.1", "down_blocks.0.attentions.1"],'
    " heads: 0.5, feed_forward: 0.75, resnet_channels: 0.75}\n"
)
EIGHT_BITS = "    - quantize: {format: int8}\n"
CONSTANT = "    - export: {static_shapes: {height: 16, width: 16, sequence: 16}}\n"


def made(steps, folder, out, target=""):
    recipe = parse_recipe(HEAD.format(target=target) + steps, "r")
    plan = make_plan(recipe, open_source(str(folder)))
    execute(plan, out)
    return plan


def drawn(pipeline):
    generator = torch.Generator().manual_seed(0)
    return pipeline("ab", num_inference_steps=2, height=16, width=16, output_type="np", generator=generator).images


@pytest.fixture(scope="module")
def pruned(nano_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "out"
    made(PRUNE, nano_folder, folder)
    return folder


def test_stock_diffusers_opens_it_and_saves_it_again(pruned, tmp_path):
    from diffusers import DiffusionPipeline, UNet2DConditionModel

    pipeline = DiffusionPipeline.from_pretrained(str(pruned), local_files_only=True)
    assert type(pipeline.unet) is UNet2DConditionModel
    assert type(pipeline.unet.mid_block.attentions[0]).__name__ == "BypassedTransformer"
    assert (
        sum(value.numel() for value in pipeline.unet.parameters())
        == open_source(str(pruned)).components["unet"].parameters
    )
    before = drawn(pipeline)
    pipeline.save_pretrained(tmp_path / "again")
    assert np.array_equal(drawn(open_pipeline(tmp_path / "again", device="cpu")), before)


def test_pruned_then_quantized_is_the_pruned_one_with_rounded_weights(pruned, nano_folder, tmp_path):
    """The quantized artifact made at once, and of the pruned artifact in a second recipe: the same bytes."""
    plan = made(PRUNE + EIGHT_BITS, nano_folder, tmp_path / "at-once")
    assert set(plan.after("unet").config["quantization_config"]) >= {"pruning", "layers"}
    made(EIGHT_BITS, pruned, tmp_path / "apart")
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "at-once" / weights).read_bytes() == (tmp_path / "apart" / weights).read_bytes()
    configs = [json.loads((tmp_path / name / "unet/config.json").read_text()) for name in ("at-once", "apart")]
    assert configs[0] == configs[1]
    difference = drawn(open_pipeline(tmp_path / "at-once", device="cpu")) - drawn(open_pipeline(pruned, device="cpu"))
    assert 0 < np.abs(difference).max() < 0.05  # int8 of random weights: 40 dB or better


def test_onnx_draws_what_torch_draws(pruned, nano_folder, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'sdcompress[onnx]')")
    made(PRUNE + CONSTANT, nano_folder, tmp_path / "onnx", "target: onnx\n")
    difference = drawn(open_pipeline_of(tmp_path / "onnx")) - drawn(open_pipeline(pruned, device="cpu"))
    assert np.abs(difference).max() < 1e-3  # float32 sums in other orders, over two steps and a VAE


def open_pipeline_of(folder):
    from sdcompress import open_pipeline as open_any

    return open_any(folder, device="cpu")


@pytest.mark.parametrize(
    ("pruning", "problem"),
    [
        (Pruning(removed=("conv_in",)), "conv_in: a Conv2d cannot be bypassed"),
        (Pruning(widths={"conv_in": 4}), "conv_in: a Conv2d cannot be 4 wide"),
        (Pruning(removed=("down_blocks.9",)), "down_blocks.9: the config says that it was pruned"),
    ],
)
def test_configs_that_fit_no_model_are_errors(pruning, problem, nano_folder):
    with pytest.raises(ArtifactError, match=problem):
        rebuild(open_pipeline(nano_folder, device="cpu").unet, pruning)
