"""Names of a UNet's tensors in the original layout, of CompVis' latent-diffusion and Stability's generative-models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdcompress.sources.single_file.tensor_slice import TensorSlice

_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"((?:down_blocks|up_blocks)\.\d+|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.\d+")


def locate_in_unet(tensor: str, config: Mapping[str, Any]) -> TensorSlice | None:
    """Return where the original layout holds this tensor of a UNet2DConditionModel; None if it does not.

    Args:
        tensor: the tensor's name in diffusers.
        config: the UNet's config.
    """
    blocks = {**_OUTSIDE, **_numbered(config)}
    block = _BLOCK.match(tensor)
    if block is None:
        module, _, leaf = tensor.rpartition(".")
        return TensorSlice(f"{blocks[module]}.{leaf}") if module in blocks else None
    inside = tensor[block.end() + 1 :]
    if block[0] not in blocks:
        return None
    if block[2] == "attentions":
        return TensorSlice(f"{blocks[block[0]]}.{inside}")  # named alike in both
    if block[2] in ("downsamplers", "upsamplers"):
        return TensorSlice(f"{blocks[block[0]]}.{inside.removeprefix('conv.')}")
    module, _, leaf = inside.rpartition(".")
    return TensorSlice(f"{blocks[block[0]]}.{_RESNET[module]}.{leaf}") if module in _RESNET else None


def _numbered(config: Mapping[str, Any]) -> dict[str, str]:
    """Return module of a down or up block -> its name in the original layout, which has one list a side."""
    down, up = config["down_block_types"], config["up_block_types"]
    layers = config.get("layers_per_block", 2)
    layers = [layers] * len(down) if isinstance(layers, int) else list(layers)
    names: dict[str, str] = {}
    index = 1  # after conv_in
    for block in range(len(down)):
        for layer in range(layers[block]):
            names[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{index}.0"
            names[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{index}.1"
            index += 1
        if block < len(down) - 1:
            names[f"down_blocks.{block}.downsamplers.0"] = f"input_blocks.{index}.0.op"
            index += 1
    index = 0
    for block, kind in enumerate(up):
        for layer in range(layers[-1 - block] + 1):
            names[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{index}.0"
            names[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{index}.1"
            index += 1
        after = 2 if "Attn" in kind else 1
        names[f"up_blocks.{block}.upsamplers.0"] = f"output_blocks.{index - 1}.{after}.conv"
    return names
