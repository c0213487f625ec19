"""The layouts checkpoints come in, each known by the names of its tensors; and what a file is that is none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import TensorRange
from sdcompress.sources.single_file.pieces import Piece
from sdcompress.sources.single_file.text_names import open_clip_piece, transformers_piece
from sdcompress.sources.single_file.transformer_names import flux_piece, sd3_piece
from sdcompress.sources.single_file.unet_names import unet_piece
from sdcompress.sources.single_file.vae_names import vae_piece

Naming = Callable[[str, Mapping[str, Any]], Piece | None]
DENOISER = "model.diffusion_model."
CONV_IN = f"{DENOISER}input_blocks.0.0.weight"
GUIDANCE = "guidance_in.in_layer.weight"

# What belongs to no component: averages kept for training, schedules that the scheduler's config says.
_LEFT_OUT = (
    "model_ema.",
    "alphas_cumprod",
    "betas",
    "sqrt_",
    "log_",
    "posterior_",
    "denoiser.sigmas",
    "loss.",
    "logvar",
)
_BESIDE = (".position_ids", ".attn_mask", ".logit_scale")  # buffers, and what only training against pictures needs


@dataclass(frozen=True)
class Part:
    """How a component stands in the file: the prefixes its names may have there, and its names after that."""

    prefixes: tuple[str, ...]
    naming: Naming


@dataclass(frozen=True)
class Layout:
    """One way of saving a whole pipeline; `entry` is the catalog's pipeline whose configs it has by default."""

    title: str
    entry: str
    denoiser: str
    parts: Mapping[str, Part]


_VAE = Part(("first_stage_model.", "vae."), vae_piece)
_UNET = Part((DENOISER,), unet_piece)
_SD1 = Layout(
    "Stable Diffusion 1.x", "sd15", "unet",
    {"unet": _UNET, "vae": _VAE, "text_encoder": Part(("cond_stage_model.transformer.",), transformers_piece)},
)  # fmt: skip
_SD2 = Layout(
    "Stable Diffusion 2.x", "sd21", "unet",
    {"unet": _UNET, "vae": _VAE, "text_encoder": Part(("cond_stage_model.model.",), open_clip_piece)},
)  # fmt: skip
_SDXL = Layout(
    "Stable Diffusion XL", "sdxl", "unet",
    {
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": Part(("conditioner.embedders.0.transformer.",), transformers_piece),
        "text_encoder_2": Part(("conditioner.embedders.1.model.",), open_clip_piece),
    },
)  # fmt: skip
_REFINER = Layout(
    "Stable Diffusion XL's refiner", "sdxl-refiner", "unet",
    {"unet": _UNET, "vae": _VAE, "text_encoder_2": Part(("conditioner.embedders.0.model.",), open_clip_piece)},
)  # fmt: skip


def _encoder(name: str) -> Part:
    return Part((f"text_encoders.{name}.transformer.",), transformers_piece)


_SD3 = Layout(
    "Stable Diffusion 3", "sd3-medium", "transformer",
    {
        "transformer": Part((DENOISER, ""), sd3_piece),
        "vae": _VAE,
        "text_encoder": _encoder("clip_l"),
        "text_encoder_2": _encoder("clip_g"),
        "text_encoder_3": _encoder("t5xxl"),
    },
)  # fmt: skip
_FLUX_PARTS = {
    "transformer": Part((DENOISER, ""), flux_piece),
    "vae": _VAE,
    "text_encoder": _encoder("clip_l"),
    "text_encoder_2": _encoder("t5xxl"),
}
_FLUX_SCHNELL = Layout("FLUX.1-schnell", "flux-schnell", "transformer", _FLUX_PARTS)
_FLUX_DEV = Layout("FLUX.1-dev", "flux-dev", "transformer", _FLUX_PARTS)
_CONTEXT_WIDTHS = {768: _SD1, 1024: _SD2, 2048: _SDXL, 1280: _REFINER}

# Beginnings of names in files that are no pipeline -> what they are and what to do.
_OTHERS = {
    "lora_unet_": "is a LoRA; give the model it was made for, and the LoRA to a fuse_lora step",
    "lora_te": "is a LoRA; give the model it was made for, and the LoRA to a fuse_lora step",
    "control_model.": "is a ControlNet in its original layout; convert it with diffusers' from_single_file",
    "down_blocks.": "is the UNet of a diffusers folder; give the folder that holds model_index.json",
    "encoder.down_blocks.": "is the VAE of a diffusers folder; give the folder that holds model_index.json",
    "transformer_blocks.": "is the transformer of a diffusers folder; give the folder that holds model_index.json",
    "text_model.": "is a text encoder; give the folder or the checkpoint of the whole pipeline",
    "encoder.down.": "is a VAE alone; give the folder or the checkpoint of the whole pipeline",
    "emb_params": "is a textual inversion; give the model it was made for",
}  # fmt: skip


def detect_layout(file: Path, ranges: Mapping[str, TensorRange]) -> Layout:
    """The layout of the checkpoint. SourceError says what the file is where it is no pipeline in a known layout."""
    for beginning, layout in (
        ("conditioner.embedders.1.model.", _SDXL),
        ("conditioner.embedders.0.model.", _REFINER),
        ("cond_stage_model.model.", _SD2),
        ("cond_stage_model.transformer.", _SD1),
        *((f"{prefix}joint_blocks.", _SD3) for prefix in (DENOISER, "")),
    ):
        if any(name.startswith(beginning) for name in ranges):
            return layout
    for prefix in (DENOISER, ""):
        if any(name.startswith(f"{prefix}double_blocks.") for name in ranges):
            return _FLUX_DEV if f"{prefix}{GUIDANCE}" in ranges else _FLUX_SCHNELL
    if CONV_IN in ranges:  # a UNet without its text encoder: their widths tell which
        widths = {where.shape[-1] for name, where in ranges.items() if name.endswith(".attn2.to_k.weight")}
        return _CONTEXT_WIDTHS.get(min(widths, default=0), _SD1)
    for name in ranges:
        for beginning, what in _OTHERS.items():
            if name.startswith(beginning):
                raise SourceError(f"{file}: {what}")
    found = ", ".join(sorted(ranges)[:3]) or "no tensor"
    raise SourceError(
        f"{file}: is no pipeline in a layout that sdcompress knows (it holds {found}); convert it with diffusers' "
        f"from_single_file(...).save_pretrained(DIR) and give DIR"
    )


def is_left_out(name: str) -> bool:
    """Whether a checkpoint's tensor belongs to no component by its nature."""
    return name.startswith(_LEFT_OUT) or name.endswith(_BESIDE) or name in ("v_pred", "ztsnr")
