"""Names of text encoders' tensors: transformers' own, which most files keep, and OpenCLIP's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdcompress.sources.single_file.pieces import Piece

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


def transformers_piece(tensor: str, config: Mapping[str, Any]) -> Piece | None:
    """The tensor under its own name: the file holds a model of transformers as it is."""
    return Piece(tensor)


def open_clip_piece(tensor: str, config: Mapping[str, Any]) -> Piece | None:
    """What `tensor` of a CLIP text model is in OpenCLIP's layout; None if it has no such."""
    if tensor == "text_projection.weight":
        return Piece("text_projection", arrangement="transposed")
    if tensor in _OPEN_CLIP:
        return Piece(_OPEN_CLIP[tensor])
    match = _LAYER.fullmatch(tensor)
    if match is None:
        return None
    layer = f"transformer.resblocks.{match[1]}"
    if match[2] in _OPEN_CLIP_LAYER:
        return Piece(f"{layer}.{_OPEN_CLIP_LAYER[match[2]]}.{match[3]}")
    place = _ORDER.get(match[2].removeprefix("self_attn."))
    return None if place is None else Piece(f"{layer}.attn.in_proj_{match[3]}", place, place + 1, 3)
