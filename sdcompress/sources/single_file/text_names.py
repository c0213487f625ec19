"""Names of text encoders' tensors: those of transformers, which most checkpoints keep, and those of OpenCLIP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdcompress.sources.single_file.tensor_slice import TensorSlice

_OPEN_CLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_ORDER = {"q_proj": 0, "k_proj": 1, "v_proj": 2}


def locate_in_transformers(tensor: str, config: Mapping[str, Any]) -> TensorSlice | None:
    """Return the tensor of the same name, for checkpoints that hold a model of transformers unchanged."""
    return TensorSlice(tensor)


def locate_in_open_clip(tensor: str, config: Mapping[str, Any]) -> TensorSlice | None:
    """Return where OpenCLIP's layout holds this tensor of a CLIP text model; None if it does not."""
    if tensor == "text_projection.weight":
        return TensorSlice("text_projection", arrangement="transposed")
    if tensor in _OPEN_CLIP:
        return TensorSlice(_OPEN_CLIP[tensor])
    match = _LAYER.fullmatch(tensor)
    if match is None:
        return None
    layer = f"transformer.resblocks.{match[1]}"
    if match[2] in _OPEN_CLIP_LAYER:
        return TensorSlice(f"{layer}.{_OPEN_CLIP_LAYER[match[2]]}.{match[3]}")
    index = _ORDER.get(match[2].removeprefix("self_attn."))
    return None if index is None else TensorSlice(f"{layer}.attn.in_proj_{match[3]}", index, index + 1, 3)
