"""Names of the transformers' tensors in the layouts of Stability (Stable Diffusion 3) and Black Forest Labs (FLUX)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdcompress.sources.single_file.tensor_slice import TensorSlice

_ORDER = {"to_q": 0, "to_k": 1, "to_v": 2, "add_q_proj": 0, "add_k_proj": 1, "add_v_proj": 2}
_BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)\.(weight|bias)")

_SD3 = {
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
}
_SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_FLUX = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
_FLUX_SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2"}
_FLUX_SINGLE_NORMS = {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}


def locate_in_sd3(tensor: str, config: Mapping[str, Any]) -> TensorSlice | None:
    """Return where Stability's layout holds this tensor of an SD3Transformer2DModel; None if it does not."""
    if tensor == "pos_embed.pos_embed":
        return TensorSlice("pos_embed")
    if found := _outside(tensor, _SD3):
        return found
    match = _BLOCK.fullmatch(tensor)
    if match is None:
        return None
    block, module, leaf = f"joint_blocks.{match[2]}", match[3], match[4]
    # The last block has no output for the text, so its norm only scales and shifts, like norm_out.
    last = int(match[2]) == config["num_layers"] - 1 and module == "norm1_context.linear"
    if module in _SD3_BLOCK:
        return TensorSlice(f"{block}.{_SD3_BLOCK[module]}.{leaf}", arrangement="halves_swapped" if last else "plain")
    attention, _, projection = module.partition(".")
    if projection not in _ORDER:
        return None
    side = "context_block" if projection.startswith("add_") else "x_block"
    index = _ORDER[projection]
    return TensorSlice(f"{block}.{side}.{attention}.qkv.{leaf}", index, index + 1, 3)


def locate_in_flux(tensor: str, config: Mapping[str, Any]) -> TensorSlice | None:
    """Return where Black Forest Labs' layout holds this tensor of a FluxTransformer2DModel; None if it does not."""
    if found := _outside(tensor, _FLUX):
        return found
    match = _BLOCK.fullmatch(tensor)
    if match is None:
        return None
    module, leaf = match[3], match[4]
    projection = module.removeprefix("attn.")
    if match[1] == "transformer_blocks":
        block = f"double_blocks.{match[2]}"
        if module in _FLUX_DOUBLE:
            return TensorSlice(f"{block}.{_FLUX_DOUBLE[module]}.{leaf}")
        if module in _FLUX_NORMS:
            return TensorSlice(f"{block}.{_FLUX_NORMS[module]}.scale")
        side = "txt_attn" if projection.startswith("add_") else "img_attn"
        index = _ORDER.get(projection)
        return None if index is None else TensorSlice(f"{block}.{side}.qkv.{leaf}", index, index + 1, 3)
    block = f"single_blocks.{match[2]}"
    if module in _FLUX_SINGLE:
        return TensorSlice(f"{block}.{_FLUX_SINGLE[module]}.{leaf}")
    if module in _FLUX_SINGLE_NORMS:
        return TensorSlice(f"{block}.{_FLUX_SINGLE_NORMS[module]}.scale")
    if module == "proj_mlp":  # four times as many rows as each of the three before it
        return TensorSlice(f"{block}.linear1.{leaf}", 3, 7, 7)
    index = _ORDER.get(projection)
    return None if index is None else TensorSlice(f"{block}.linear1.{leaf}", index, index + 1, 7)


def _outside(tensor: str, names: Mapping[str, str]) -> TensorSlice | None:
    module, _, leaf = tensor.rpartition(".")
    if module == "norm_out.linear":
        return TensorSlice(f"final_layer.adaLN_modulation.1.{leaf}", arrangement="halves_swapped")
    return TensorSlice(f"{names[module]}.{leaf}") if module in names else None
