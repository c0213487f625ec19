"""Pruned specs against the UNets stock diffusers builds from the pruned configs."""

import pytest
import torch

from sdcompress.backends.torch.loading import open_pipeline
from sdcompress.execute import execute
from sdcompress.plan import make_plan
from sdcompress.recipe import parse_recipe
from sdcompress.source import open_source
from sdcompress.steps.prune import Prune

PARAMETERS = [{"drop_mid_block": True}, {"layers_per_block": 1}, {"drop_mid_block": True, "layers_per_block": 1}]


def built_shapes(config):
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    with init_empty_weights():
        return {
            name: tuple(value.shape) for name, value in UNet2DConditionModel.from_config(config).state_dict().items()
        }


@pytest.mark.parametrize("model", ["sd15", "sd21", "tiny-sd"])
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_spec_is_what_stock_diffusers_builds(model, parameters):
    spec = open_source(model).components["unet"]
    pruned = Prune(**parameters).plan(spec, "torch").spec
    assert {name: tensor.shape for name, tensor in pruned.tensors.items()} == built_shapes(dict(pruned.config))


def test_kept_weights_are_the_original_ones(nano_folder, tmp_path):
    """An up block keeps its first and its last layers, a down block its first."""
    text = "schema_version: 1\ndescription: T\ncomponents:\n  unet:\n    - prune: {layers_per_block: 1}\n"
    execute(make_plan(parse_recipe(text, "r"), open_source(str(nano_folder))), tmp_path / "out")
    before = open_pipeline(nano_folder, device="cpu").unet.state_dict()
    after = open_pipeline(tmp_path / "out", device="cpu").unet.state_dict()
    for new, old in {
        "down_blocks.0.resnets.0": "down_blocks.0.resnets.0",
        "up_blocks.1.resnets.1": "up_blocks.1.resnets.2",
    }.items():
        assert torch.equal(after[f"{new}.conv1.weight"], before[f"{old}.conv1.weight"])
    assert not any(name.startswith("up_blocks.1.resnets.2") for name in after)
