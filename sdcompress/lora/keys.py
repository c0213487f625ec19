"""Keys of LoRA files: the component and module that a tensor belongs to, and which part of the update it is.

Layouts: diffusers' with PEFT (`unet.….to_q.lora_A.weight`) and with the older attention processors
(`….attn1.processor.to_q_lora.down.weight`), kohya's (`lora_unet_…_to_q.lora_down.weight` with `.alpha`, LoCon's
`.lora_mid.weight`) and PEFT's own (`base_model.model.….lora_A.weight`). kohya's module names have no dots, so all
module names are compared without dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sdcompress.sources.source import DENOISERS

Role = Literal["down", "up", "mid", "alpha"]

# Beginning of a key -> its component; "denoiser": the UNet or transformer; None: the component that is asked about.
_OWNERS: tuple[tuple[str, str | None], ...] = (
    ("lora_unet_", "denoiser"), ("lora_transformer_", "denoiser"), ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"), ("lora_te3_", "text_encoder_3"), ("lora_te_", "text_encoder"),
    ("unet.", "denoiser"), ("transformer.", "denoiser"), ("diffusion_model.", "denoiser"),
    ("text_encoder_2.", "text_encoder_2"), ("text_encoder_3.", "text_encoder_3"), ("text_encoder.", "text_encoder"),
    ("base_model.model.", None),
)  # fmt: skip
_ROLES: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"(.+?)(?:\.lora_down|\.lora_A(?:\.\w+)?|(?:\.lora_linear_layer|\.lora|_lora)\.down)\.weight"), "down"),
    (re.compile(r"(.+?)(?:\.lora_up|\.lora_B(?:\.\w+)?|(?:\.lora_linear_layer|\.lora|_lora)\.up)\.weight"), "up"),
    (re.compile(r"(.+?)\.lora_mid\.weight"), "mid"),
    (re.compile(r"(.+?)(?:\.lora|_lora)?\.alpha"), "alpha"),
)
# Keys that only files of other kinds than a plain LoRA have.
_OTHER_KINDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.(dora_scale|lora_magnitude_vector)\b"), "a DoRA"),
    (re.compile(r"\.hada_[wt]\d"), "a LoHa"),
    (re.compile(r"\.lokr_[wt]\d"), "a LoKr"),
    (re.compile(r"\.(oft_|boft_|ia3_)"), "not a LoRA but another kind of adapter"),
    (re.compile(r"\.lora_embedding_[AB]"), "a LoRA of embeddings"),
    (re.compile(r"\.diff(_b)?$"), "full differences of weights"),
    (re.compile(r"\.bias$"), "a LoRA with biases"),
    (re.compile(r"(^|\.)(emb_params|string_to_param)\b|^(clip_[lg]|t5xxl)$"), "a textual inversion"),
)


@dataclass(frozen=True)
class Key:
    """A parsed key.

    Args:
        owner: the component, or `denoiser`; None: the component that is asked about.
        module: name of the module without dots.
        role: part of the update.
    """

    owner: str | None
    module: str
    role: Role

    def is_for(self, component: str) -> bool:
        """Return whether it belongs to the component of that name."""
        return self.owner in (None, component) or (self.owner == "denoiser" and component in DENOISERS)


def parse_key(key: str) -> Key | None:
    """Return the parsed key; None where it is not a key of a LoRA.

    Examples:
        >>> parse_key("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight")
        Key(owner='denoiser', module='mid_block_attentions_0_proj_in', role='down')
    """
    for pattern, role in _ROLES:
        if found := pattern.fullmatch(key):
            for beginning, owner in _OWNERS:
                if found[1].startswith(beginning):
                    return Key(owner, found[1].removeprefix(beginning).replace(".", "_"), role)
            return Key(None, found[1].replace(".", "_"), role)
    return None


def other_kind(key: str) -> str | None:
    """Return the kind of a file with such a key, where that is not a plain LoRA."""
    return next((what for sign, what in _OTHER_KINDS if sign.search(key)), None)


def module_names(module: str) -> Iterator[str]:
    """Yield the names, without dots, that a component may have for what a LoRA calls `module`."""
    plain = module.replace("_processor_", "_")  # diffusers' older attention processors
    forms = (
        module,
        re.sub(r"_to_out$", "_to_out_0", plain),
        re.sub(r"_to_([qkv])$", r"_\1_proj", re.sub(r"_to_out$", "_out_proj", plain)),
    )
    yield from forms
    yield from (f"text_model_{form}" for form in forms)  # a CLIP text encoder's, saved under transformers 5
