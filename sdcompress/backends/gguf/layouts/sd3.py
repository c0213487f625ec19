"""The published names of Stable Diffusion 3 and 3.5 transformers, from Stability AI's checkpoints."""

from __future__ import annotations

from sdcompress.backends.gguf.layouts import Rows, rename_layers, whole
from sdcompress.sources.spec import ComponentSpec

_POSITIONS = "pos_embed.pos_embed"
_OUTSIDE = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "context_embedder": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_BLOCK = {
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "x_block.attn.proj": ("attn.to_out.0",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}


def tensors(spec: ComponentSpec) -> dict[str, tuple[Rows, ...]]:
    """Return published name -> rows."""
    layers: dict[str, tuple[str, ...]] = dict(_OUTSIDE)
    count = spec.config["num_layers"]
    for index in range(count):
        for published, parts in _BLOCK.items():
            layers[f"joint_blocks.{index}.{published}"] = tuple(f"transformer_blocks.{index}.{part}" for part in parts)
    # The last block normalizes its context as the end of the network normalizes its output.
    swapped = {"final_layer.adaLN_modulation.1", f"joint_blocks.{count - 1}.context_block.adaLN_modulation.1"}
    named = rename_layers(spec, layers, frozenset(swapped))
    if _POSITIONS in spec.tensors:
        named["pos_embed"] = (whole(spec, _POSITIONS),)
    return named
