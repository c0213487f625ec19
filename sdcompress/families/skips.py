"""Which inputs of a UNet are concatenations with a skip connection, whose two parts have distributions of their own.

Each resnet of an up block takes its predecessor's output joined with what the down blocks kept. Only the shortcut
convolution sees the two parts as they are (before `conv1` a group norm mixes them); Q-Diffusion (arXiv:2302.04304,
section 4.2) found their ranges so different that they should be quantized apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Up blocks whose every resnet takes the concatenation. Others (`KUpBlock2D`, `SkipUpBlock2D`, ...) are built otherwise.
_JOINING = frozenset(
    {"UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"}
)


def skip_splits(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Shortcut convolution -> (channels of the hidden states, channels of the skip connection), in that order.

    `config` is the component's config.json as diffusers saves it. Empty for other classes.
    """
    if config.get("_class_name") != "UNet2DConditionModel":
        return {}
    widths = tuple(reversed(config["block_out_channels"]))  # of the up blocks, first to last
    layers = config["layers_per_block"]
    per_block = [layers] * len(widths) if isinstance(layers, int) else list(reversed(layers))
    splits = {}
    for block, (block_type, width) in enumerate(zip(config["up_block_types"], widths, strict=True)):
        before = widths[max(block - 1, 0)]
        last_skip = widths[min(block + 1, len(widths) - 1)]
        for resnet in range(per_block[block] + 1):
            hidden = before if resnet == 0 else width
            skip = last_skip if resnet == per_block[block] else width
            if block_type in _JOINING and hidden + skip != width:  # else the resnet has no shortcut convolution
                splits[f"up_blocks.{block}.resnets.{resnet}.conv_shortcut"] = (hidden, skip)
    return splits
