"""Canonical names of tensors and layers, which do not depend on the version of the library that saved or opens a model.

Recipes, artifacts and statistics use them; published files have them. Versions differ in this:

- diffusers before 0.18 had other names for the attention of AutoencoderKL;
- transformers 5 saves CLIP's text model without `text_model.`, and the vision model of Stable Diffusion's safety
  checker with one `vision_model.` instead of two. Its modules lack that level too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_OLD_VAE_ATTENTION = re.compile(r"(?<=\.attentions\.)(\d+)\.(query|key|value|proj_attn)\.")
_NEW_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Class -> where a name lacks a level, and the level.
MISSING_LEVELS = {
    "CLIPTextModel": (re.compile(r"^(?=(embeddings|encoder|final_layer_norm)\.)"), "text_model."),
    "StableDiffusionSafetyChecker": (re.compile(r"^(?=vision_model\.(?!vision_model\.))"), "vision_model."),
}
_LEVEL = re.compile(r"(^|(?<=\.))(text_model|vision_model)\.")


def canonical_name(class_name: str, tensor: str) -> str:
    """Return the canonical name of a stored tensor.

    Args:
        class_name: class of the component.
        tensor: the tensor's name in a file.

    Examples:
        >>> canonical_name("AutoencoderKL", "decoder.mid_block.attentions.0.proj_attn.weight")
        'decoder.mid_block.attentions.0.to_out.0.weight'
    """
    if class_name.startswith("AutoencoderKL"):
        return _OLD_VAE_ATTENTION.sub(lambda m: f"{m[1]}.{_NEW_VAE_ATTENTION[m[2]]}.", tensor)
    if class_name in MISSING_LEVELS:
        gap, level = MISSING_LEVELS[class_name]
        return gap.sub(level, tensor)
    return tensor


def name_in_model(model: nn.Module, name: str) -> str | None:
    """Return the model's name for the module or tensor with this canonical name; None if it has none."""
    for candidate in (name, _LEVEL.sub("", name, count=1)):
        owner, _, leaf = candidate.rpartition(".")
        try:
            if hasattr(model.get_submodule(owner), leaf):
                return candidate
        except AttributeError:
            continue
    return None
