"""fuse_lora on SDXL: files of kohya's trainer, which name the UNet's blocks as the original implementation does."""

import json

import pytest
import torch
from safetensors.torch import save_file
from saved_by_transformers import tensors_in, tensors_of

from sdcompress import compress
from sdcompress.lora.file import open_lora
from sdcompress.planning.recipe import parse_recipe
from sdcompress.sources.opening import open_source

RANK = 3
DOWN, UP = "down_blocks.1", "up_blocks.0"


def fused_by_diffusers(folder, file):
    """Component -> its weights after `load_lora_weights` and `fuse_lora`."""
    pytest.importorskip("peft", reason="peft is not installed (pip install 'sdcompress[dev]')")
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    parts = ["unet", "text_encoder", "text_encoder_2"]
    pipeline.fuse_lora(components=parts)
    pipeline.unload_lora_weights()
    return {part: tensors_of(pipeline.components[part]) for part in parts}


def test_kohya_with_the_original_names_of_blocks(nano_sdxl, tmp_path):
    names = {  # one layer per block: input 3 is the second block's, output 0 and 1 the first upper block's
        "unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q": f"{DOWN}.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet_input_blocks_3_1_proj_in": "down_blocks.1.attentions.0.proj_in",
        "unet_input_blocks_3_0_emb_layers_1": "down_blocks.1.resnets.0.time_emb_proj",
        "unet_input_blocks_3_0_in_layers_2": "down_blocks.1.resnets.0.conv1",
        "unet_input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
        "unet_middle_block_1_transformer_blocks_0_attn2_to_k": "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "unet_output_blocks_1_1_transformer_blocks_0_ff_net_2": f"{UP}.attentions.1.transformer_blocks.0.ff.net.2",
        "te1_text_model_encoder_layers_0_self_attn_q_proj": "text_model.encoder.layers.0.self_attn.q_proj",
        "te1_text_model_encoder_layers_0_self_attn_out_proj": "text_model.encoder.layers.0.self_attn.out_proj",
        "te2_text_model_encoder_layers_1_self_attn_out_proj": "text_model.encoder.layers.1.self_attn.out_proj",
        "te2_text_model_encoder_layers_1_mlp_fc2": "text_model.encoder.layers.1.mlp.fc2",
    }  # fmt: skip
    part_of = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
    source = open_source(str(nano_sdxl))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, module in names.items():
        shape = source.components[part_of[name.partition("_")[0]]].tensors[f"{module}.weight"].shape
        down = (RANK, *shape[1:])
        up = (shape[0], RANK, *(1 for _ in shape[2:]))
        tensors[f"lora_{name}.lora_down.weight"] = torch.randn(down, generator=generator)
        tensors[f"lora_{name}.lora_up.weight"] = torch.randn(up, generator=generator)
        tensors[f"lora_{name}.alpha"] = torch.tensor(1.5)
    save_file(tensors, tmp_path / "xl.safetensors")
    for part in part_of.values():
        lora = open_lora(tmp_path / "xl.safetensors", source.components[part])
        assert set(lora.updates) == {
            module for name, module in names.items() if part_of[name[: name.index("_")]] == part
        }
    steps = [{"fuse_lora": {"path": "xl.safetensors"}}]
    recipe = {"schema_version": 1, "description": "T", "components": dict.fromkeys(part_of.values(), steps)}
    compress(source, parse_recipe(json.dumps(recipe), "r", tmp_path), tmp_path / "out")
    want = fused_by_diffusers(nano_sdxl, tmp_path / "xl.safetensors")
    for part in part_of.values():
        got, before = tensors_in(tmp_path / "out", part), tensors_in(nano_sdxl, part)
        changed = {name for name in got if not torch.equal(got[name], before[name])}
        assert changed == {
            f"{module}.weight" for name, module in names.items() if part_of[name[: name.index("_")]] == part
        }
        for name, value in got.items():
            # Products of rank 3 and a sum, in another order: some roundings of 2**-24 of the largest value.
            tolerance = 16 * 2**-24 * float(want[part][name].abs().max())
            assert float((value - want[part][name]).abs().max()) <= tolerance, name
