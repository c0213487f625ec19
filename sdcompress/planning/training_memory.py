"""How much memory training a UNet takes, from its spec alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from sdcompress.sources.spec import ComponentSpec, layers_of

_FLOAT_BYTES = 4
_BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.")
_TEXT_TOKENS = 77
_WEIGHT_COPIES = 5  # weights, gradients, two moments, average
# Kept for the backward pass: the input of a layer, of the norm and of the activation before it, and its output; the
# scores of an attention before and after softmax, and one gradient of them. Fitted to VmHWM, which tests compare.
_COPIES_OF_INPUTS = 3
_COPIES_OF_SCORES = 3


def state_bytes(spec: ComponentSpec, lora_rank: int | None) -> int:
    """Return the bytes of all that is kept from step to step: weights, gradients, moments, average."""
    if lora_rank is None:
        return _WEIGHT_COPIES * _FLOAT_BYTES * spec.parameters
    return _FLOAT_BYTES * (2 * spec.parameters + _WEIGHT_COPIES * adapter_parameters(spec, lora_rank))


def checkpoint_bytes(spec: ComponentSpec, lora_rank: int | None) -> int:
    """Return the bytes of a checkpoint: weights, average and two moments of what is trained."""
    trained = spec.parameters if lora_rank is None else adapter_parameters(spec, lora_rank)
    return 4 * _FLOAT_BYTES * trained


def adapter_parameters(spec: ComponentSpec, rank: int) -> int:
    """Return the parameters of low-rank updates of all linear layers and convolutions."""
    count = 0
    for layer in layers_of(spec):
        if layer.weight is not None and len(layer.shape) in (2, 4):
            rows, columns = layer.shape[0], math.prod(layer.shape[1:])
            count += min(rank, rows, columns) * (rows + columns)
    return count


def activation_bytes(spec: ComponentSpec, batch_size: int) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, in float32, at the UNet's own size."""
    elements = 0
    for layer in layers_of(spec):
        if layer.weight is None or len(layer.shape) not in (2, 4):
            continue
        positions = _positions(spec.config, layer.name)
        if ".attn2.to_k" in layer.name or ".attn2.to_v" in layer.name:
            positions = _TEXT_TOKENS
        elif "time_emb" in layer.name:
            positions = 1
        elements += positions * (_COPIES_OF_INPUTS * layer.shape[1] + layer.shape[0])
        if layer.name.endswith(".to_q"):
            keys = _TEXT_TOKENS if ".attn2." in layer.name else positions
            elements += _COPIES_OF_SCORES * _heads(spec.config, layer.name) * positions * keys
    return _FLOAT_BYTES * batch_size * elements


def latent_elements(spec: ComponentSpec) -> int:
    """Return the number of elements in a picture's latents."""
    return int(spec.config.get("in_channels", 4)) * _size(spec.config) ** 2


def _size(config: Mapping[str, Any]) -> int:
    size = config.get("sample_size") or 64
    return int(max(size) if isinstance(size, list | tuple) else size)


def _positions(config: Mapping[str, Any], name: str) -> int:
    """Return the positions of the latents at the layer: each down block but the last halves both edges."""
    last = len(config["block_out_channels"]) - 1
    match = _BLOCK.match(name)
    if match is None:
        halvings = last if name.startswith("mid_block.") else 0
    else:
        halvings = int(match[2]) if match[1] == "down" else last - int(match[2])
    return int((_size(config) // 2**halvings) ** 2)


def _heads(config: Mapping[str, Any], name: str) -> int:
    """Return the heads of the attention, which configs call `attention_head_dim` for historical reasons."""
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    if not isinstance(heads, list | tuple):
        return int(heads)
    match = _BLOCK.match(name)
    if match is None:
        return int(heads[-1])
    return int(heads[int(match[2])] if match[1] == "down" else heads[-1 - int(match[2])])
