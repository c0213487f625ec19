"""The published names of FLUX.1 transformers, from Black Forest Labs' repository."""

from __future__ import annotations

from sdcompress.backends.gguf.layouts import Rows, rename_layers
from sdcompress.sources.spec import ComponentSpec

_OUTSIDE = {
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "txt_in": ("context_embedder",),
    "img_in": ("x_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm.scale": ("attn.norm_q",),
    "img_attn.norm.key_norm.scale": ("attn.norm_k",),
    "txt_attn.norm.query_norm.scale": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm.scale": ("attn.norm_added_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm.scale": ("attn.norm_q",),
    "norm.key_norm.scale": ("attn.norm_k",),
}


def tensors(spec: ComponentSpec) -> dict[str, tuple[Rows, ...]]:
    """Return published name -> rows."""
    layers: dict[str, tuple[str, ...]] = dict(_OUTSIDE)
    for index in range(spec.config["num_layers"]):
        for published, parts in _DOUBLE.items():
            layers[f"double_blocks.{index}.{published}"] = tuple(f"transformer_blocks.{index}.{part}" for part in parts)
    for index in range(spec.config["num_single_layers"]):
        for published, parts in _SINGLE.items():
            layers[f"single_blocks.{index}.{published}"] = tuple(
                f"single_transformer_blocks.{index}.{part}" for part in parts
            )
    return rename_layers(spec, layers, swapped=frozenset({"final_layer.adaLN_modulation.1"}))
