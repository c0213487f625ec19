"""A LoRA on a quantized artifact does what it does on the dequantized weights; where it cannot, an error says so."""

import json

import pytest
import torch
from torch import nn

from benchmarks.reload_check import dequantized, output_of
from sdcompress import compress, open_pipeline
from sdcompress.backends.torch.packaging import layer_formats
from sdcompress.errors import ArtifactError
from sdcompress.planning.recipe import parse_recipe
from sdcompress.sources.opening import open_source

peft = pytest.importorskip("peft", reason="peft is not installed (pip install 'sdcompress[dev]')")

TARGETS = {"unet": ["to_q", "to_out.0", "ff.net.2", "conv1", "proj_in"], "text_encoder": ["q_proj", "fc1"]}
STEPS = {
    "int8": [{"quantize": {"format": "int8"}}],
    "int4": [{"quantize": {"format": "int4", "group_size": 16, "scale_bits": 8, "rank": 2}}],
    "rotated": [{"quantize": {"format": "uint4", "hadamard": True}}],
    "codebook": [{"quantize": {"format": "codebook4"}}],
    "nf4-conv": [{"quantize": {"format": "nf4", "convolutions": True}}],
}


@pytest.fixture(scope="module")
def lora(nano_folder, tmp_path_factory):
    """A folder with a random LoRA for UNet and text encoder, as diffusers saves them."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(1)
    layers = {}
    for part, model_class in (("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
        model = model_class.from_pretrained(nano_folder / part)
        model.add_adapter(peft.LoraConfig(r=2, target_modules=TARGETS[part], init_lora_weights=False))
        layers[f"{part}_lora_layers"] = peft.utils.get_peft_model_state_dict(model)
    folder = tmp_path_factory.mktemp("lora")
    StableDiffusionPipeline.save_lora_weights(folder, **layers)
    return folder


def compressed(nano_folder, folder, steps):
    recipe = {"schema_version": 1, "description": "T", "components": {"unet": steps, "text_encoder": steps}}
    compress(nano_folder, parse_recipe(json.dumps(recipe), "r"), folder)
    return folder


@pytest.mark.parametrize("name", STEPS)
def test_same_as_on_dequantized_weights(name, lora, nano_folder, tmp_path):
    from diffusers import DiffusionPipeline

    out = compressed(nano_folder, tmp_path / "out", STEPS[name])
    pipeline = open_pipeline(out, device="cpu") if name == "nf4-conv" else DiffusionPipeline.from_pretrained(out)
    specs = open_source(str(out)).components
    plain = {  # nf4-conv leaves the text encoder in bitsandbytes' own layout
        part: dequantized(pipeline.components[part], out, part, formats)
        for part in TARGETS
        if (formats := layer_formats(specs[part].config)) is not None
    }
    stock = DiffusionPipeline.from_pretrained(nano_folder, **plain)
    with torch.no_grad():
        before = {part: output_of(part, pipeline.components[part]) for part in plain}
        for each in (pipeline, stock):
            each.load_lora_weights(lora)
            each.set_adapters(each.get_list_adapters()["unet"], 0.5)
        for part in plain:
            got, want = (output_of(part, each.components[part]) for each in (pipeline, stock))
            # Roundings of 2**-24 that a few dozen layers add to, whose weights are scaled in another order.
            assert float((got - want).norm() / want.norm()) < 200 * 2.0**-24
            assert float((got - before[part]).norm() / want.norm()) > 1e-3
        pipeline.unload_lora_weights()
        assert all(torch.equal(output_of(part, pipeline.components[part]), before[part]) for part in plain)


@pytest.mark.parametrize("form", ["int8-dynamic", "llm-int8", "nf4"])
def test_each_layer_adds_its_update(form, lora, nano_folder, tmp_path):
    """Where inputs are rounded, or bitsandbytes computes: what a layer adds is the update of what goes in."""
    quantize = {"format": form} if form != "int8-dynamic" else {"format": "int8", "activations": "int8"}
    pipeline = open_pipeline(compressed(nano_folder, tmp_path / "out", [{"quantize": quantize}]), device="cpu")
    pipeline.load_lora_weights(lora)
    seen = 0
    for part in TARGETS:
        for layer in pipeline.components[part].modules():
            if hasattr(layer, "lora_A") and isinstance(layer.base_layer, nn.Linear):
                x = torch.randn((3, layer.in_features), generator=torch.Generator().manual_seed(0))
                adapter = next(iter(layer.lora_A))
                with torch.no_grad():
                    update = layer.lora_B[adapter](layer.lora_A[adapter](x)) * layer.scaling[adapter]
                    got, want = layer(x), layer.base_layer(x) + update
                assert float((got - want).abs().max()) <= 4 * 2.0**-24 * float(want.abs().max())
                seen += 1
    assert seen > 10


def test_fusing_is_refused(lora, nano_folder, tmp_path):
    pipeline = open_pipeline(compressed(nano_folder, tmp_path / "out", STEPS["int8"]), device="cpu")
    pipeline.load_lora_weights(lora)
    with pytest.raises(ArtifactError, match="keep the LoRA as an adapter"):
        pipeline.fuse_lora()
