"""Names of a VAE's tensors in the original layout, of CompVis' latent-diffusion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdcompress.sources.single_file.tensor_slice import TensorSlice

_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_PLAIN = re.compile(r"(quant_conv|post_quant_conv|(?:en|de)coder\.conv_(?:in|out))\.(weight|bias)")
_NORM_OUT = re.compile(r"(encoder|decoder)\.conv_norm_out\.(weight|bias)")
_BLOCK = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.resnets\.(\d+)\.(.+)")
_SAMPLER = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(down|up)samplers\.0\.conv\.(.+)")
_MID_RESNET = re.compile(r"(encoder|decoder)\.mid_block\.resnets\.(\d)\.(.+)")
_MID_ATTENTION = re.compile(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)")


def locate_in_vae(tensor: str, config: Mapping[str, Any]) -> TensorSlice | None:
    """Return where the original layout holds this tensor of an AutoencoderKL; None if it does not."""
    blocks = len(config["block_out_channels"])
    if _PLAIN.fullmatch(tensor):
        return TensorSlice(tensor)
    if match := _NORM_OUT.fullmatch(tensor):
        return TensorSlice(f"{match[1]}.norm_out.{match[2]}")
    if match := _BLOCK.fullmatch(tensor):
        inside = match[4].replace("conv_shortcut", "nin_shortcut")
        return TensorSlice(f"{match[1]}.{_level(match[1], int(match[2]), blocks)}.block.{match[3]}.{inside}")
    if match := _SAMPLER.fullmatch(tensor):
        return TensorSlice(f"{match[1]}.{_level(match[1], int(match[2]), blocks)}.{match[3]}sample.conv.{match[4]}")
    if match := _MID_RESNET.fullmatch(tensor):
        return TensorSlice(f"{match[1]}.mid.block_{int(match[2]) + 1}.{match[3]}")
    match = _MID_ATTENTION.fullmatch(tensor)
    if match and match[2] in _ATTENTION:
        return TensorSlice(f"{match[1]}.mid.attn_1.{_ATTENTION[match[2]]}.{match[3]}")
    return None


def _level(side: str, block: int, blocks: int) -> int:
    """Return the block's number in the original layout, which counts from the finest resolution on both sides."""
    return block if side == "encoder.down" else blocks - 1 - block
