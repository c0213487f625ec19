"""Checkpoints in the original layouts, made from diffusers pipelines by tables of their own.

Follows the published scripts `convert_diffusers_to_original_stable_diffusion.py` and `..._sdxl.py`: literal lists of
substrings for four resolutions of two layers, replaced in turn. `levels` and `layers` make them fit tiny models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

State = dict[str, torch.Tensor]
UNET, TEXT = "diffusion_pytorch_model.safetensors", "model.safetensors"


def sd1_checkpoint(folder: Path, levels: int = 2) -> State:
    """The pipeline in Stable Diffusion 1.x's layout; the nano pipeline has two levels."""
    return {
        **prefixed("model.diffusion_model.", unet_to_original(load_file(folder / "unet" / UNET), levels)),
        **prefixed("first_stage_model.", vae_to_original(load_file(folder / "vae" / UNET), levels)),
        **prefixed("cond_stage_model.transformer.", load_file(folder / "text_encoder" / TEXT)),
    }


def unet_to_original(state: Mapping[str, torch.Tensor], levels: int = 4, layers: int = 2) -> State:
    """The UNet's tensors under latent-diffusion's names."""
    fixed = [
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
        ("label_emb.0.0.", "add_embedding.linear_1."),
        ("label_emb.0.2.", "add_embedding.linear_2."),
    ]
    resnet = [
        ("in_layers.0", "norm1"),
        ("in_layers.2", "conv1"),
        ("out_layers.0", "norm2"),
        ("out_layers.3", "conv2"),
        ("emb_layers.1", "time_emb_proj"),
        ("skip_connection", "conv_shortcut"),
    ]
    attended = {name.split(".attentions.")[0] for name in state if ".attentions." in name}
    blocks = []
    for i in range(levels):
        for j in range(layers):
            index = (layers + 1) * i + j + 1
            blocks.append((f"input_blocks.{index}.0.", f"down_blocks.{i}.resnets.{j}."))
            blocks.append((f"input_blocks.{index}.1.", f"down_blocks.{i}.attentions.{j}."))
        for j in range(layers + 1):
            index = (layers + 1) * i + j
            blocks.append((f"output_blocks.{index}.0.", f"up_blocks.{i}.resnets.{j}."))
            blocks.append((f"output_blocks.{index}.1.", f"up_blocks.{i}.attentions.{j}."))
        if i < levels - 1:
            blocks.append((f"input_blocks.{(layers + 1) * (i + 1)}.0.op.", f"down_blocks.{i}.downsamplers.0.conv."))
            place = 2 if f"up_blocks.{i}" in attended else 1
            blocks.append((f"output_blocks.{(layers + 1) * (i + 1) - 1}.{place}.", f"up_blocks.{i}.upsamplers.0."))
    blocks.append(("middle_block.1.", "mid_block.attentions.0."))
    blocks += [(f"middle_block.{2 * j}.", f"mid_block.resnets.{j}.") for j in range(2)]
    renamed = {}
    for name, tensor in state.items():
        new = name
        for theirs, ours in fixed:
            if name.startswith(ours):
                new = theirs + name[len(ours) :]
        if "resnets" in name:
            for theirs, ours in resnet:
                new = new.replace(ours, theirs)
        for theirs, ours in blocks:
            new = new.replace(ours, theirs)
        renamed[new] = tensor
    return renamed


def vae_to_original(state: Mapping[str, torch.Tensor], levels: int = 4) -> State:
    """The VAE's tensors under latent-diffusion's names; attention's linear layers become 1x1 convolutions."""
    table = [
        ("nin_shortcut", "conv_shortcut"),
        ("norm_out", "conv_norm_out"),
        ("mid.attn_1.", "mid_block.attentions.0."),
    ]
    for i in range(levels):
        for j in range(2):
            table.append((f"encoder.down.{i}.block.{j}.", f"encoder.down_blocks.{i}.resnets.{j}."))
        for j in range(3):
            table.append((f"decoder.up.{levels - 1 - i}.block.{j}.", f"decoder.up_blocks.{i}.resnets.{j}."))
        table.append((f"down.{i}.downsample.", f"down_blocks.{i}.downsamplers.0."))
        table.append((f"up.{levels - 1 - i}.upsample.", f"up_blocks.{i}.upsamplers.0."))
    table += [(f"mid.block_{i + 1}.", f"mid_block.resnets.{i}.") for i in range(2)]
    attention = [
        ("norm.", "group_norm."),
        ("q.", "to_q."),
        ("k.", "to_k."),
        ("v.", "to_v."),
        ("proj_out.", "to_out.0."),
    ]
    renamed = {}
    for name, tensor in state.items():
        new = name
        for theirs, ours in table:
            new = new.replace(ours, theirs)
        if "attentions" in name:
            for theirs, ours in attention:
                new = new.replace(ours, theirs)
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        renamed[new] = tensor
    return renamed


def clip_to_open_clip(state: Mapping[str, torch.Tensor]) -> State:
    """A CLIP text model's tensors under OpenCLIP's names: q, k and v in one matrix, the projection transposed."""
    table = [
        ("resblocks.", "text_model.encoder.layers."),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        (".c_fc.", ".fc1."),
        (".c_proj.", ".fc2."),
        (".attn", ".self_attn"),
        ("ln_final.", "text_model.final_layer_norm."),
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ]
    renamed: State = {}
    for name, tensor in state.items():
        if name.endswith("position_ids"):
            continue
        if name == "text_projection.weight":
            renamed["text_projection"] = tensor.T.contiguous()
            continue
        if any(f"self_attn.{letter}_proj" in name for letter in "kv"):
            continue
        new, joined = name, tensor
        if "self_attn.q_proj" in name:
            joined = torch.cat([state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
            new = new.replace("q_proj.", "in_proj_")
        for theirs, ours in table:
            new = new.replace(ours, theirs)
        renamed[f"transformer.{new}" if new.startswith("resblocks") else new] = joined
    return renamed


def prefixed(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    """The tensors with `prefix` before their names, each in memory of its own."""
    return {prefix + name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
