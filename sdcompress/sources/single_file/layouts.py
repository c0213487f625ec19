"""The layouts of checkpoints, recognised by the names of their tensors, and what a file in no such layout is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import TensorRange
from sdcompress.sources.single_file.tensor_slice import TensorSlice
from sdcompress.sources.single_file.text_names import locate_in_open_clip, locate_in_transformers
from sdcompress.sources.single_file.transformer_names import locate_in_flux, locate_in_sd3
from sdcompress.sources.single_file.unet_names import locate_in_unet
from sdcompress.sources.single_file.vae_names import locate_in_vae

Locate = Callable[[str, Mapping[str, Any]], TensorSlice | None]  # name in diffusers, config -> where it is stored
DENOISER = "model.diffusion_model."
CONV_IN = f"{DENOISER}input_blocks.0.0.weight"
GUIDANCE = "guidance_in.in_layer.weight"

# Beginnings of names of tensors that belong to no component: averages for training, and schedules, which are in the
# scheduler's config.
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
# Ends of such names: buffers, and what only the training of CLIP needs.
_LEFT_OUT_ENDS = (".position_ids", ".attn_mask", ".logit_scale")


@dataclass(frozen=True)
class ComponentLayout:
    """How a checkpoint stores a component.

    Attributes:
        prefixes: prefixes that the names of its tensors may have.
        locate: function that says which tensor, named without the prefix, holds one of diffusers.
    """

    prefixes: tuple[str, ...]
    locate: Locate


@dataclass(frozen=True)
class Layout:
    """How checkpoints of a model family store a pipeline.

    Attributes:
        title: name of the family.
        entry: name of the pipeline in the catalog whose configs the checkpoint is read with by default.
        components: component -> how it is stored.
    """

    title: str
    entry: str
    components: Mapping[str, ComponentLayout]


_VAE = ComponentLayout(("first_stage_model.", "vae."), locate_in_vae)
_UNET = ComponentLayout((DENOISER,), locate_in_unet)
_SD1 = Layout(
    "Stable Diffusion 1.x", "sd15",
    {
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": ComponentLayout(("cond_stage_model.transformer.",), locate_in_transformers),
    },
)  # fmt: skip
_SD2 = Layout(
    "Stable Diffusion 2.x", "sd21",
    {"unet": _UNET, "vae": _VAE, "text_encoder": ComponentLayout(("cond_stage_model.model.",), locate_in_open_clip)},
)  # fmt: skip
_SDXL = Layout(
    "Stable Diffusion XL", "sdxl",
    {
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": ComponentLayout(("conditioner.embedders.0.transformer.",), locate_in_transformers),
        "text_encoder_2": ComponentLayout(("conditioner.embedders.1.model.",), locate_in_open_clip),
    },
)  # fmt: skip
_REFINER = Layout(
    "Stable Diffusion XL's refiner", "sdxl-refiner",
    {
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder_2": ComponentLayout(("conditioner.embedders.0.model.",), locate_in_open_clip),
    },
)  # fmt: skip


def _encoder(name: str) -> ComponentLayout:
    return ComponentLayout((f"text_encoders.{name}.transformer.",), locate_in_transformers)


_SD3 = Layout(
    "Stable Diffusion 3", "sd3-medium",
    {
        "transformer": ComponentLayout((DENOISER, ""), locate_in_sd3),
        "vae": _VAE,
        "text_encoder": _encoder("clip_l"),
        "text_encoder_2": _encoder("clip_g"),
        "text_encoder_3": _encoder("t5xxl"),
    },
)  # fmt: skip
_FLUX_COMPONENTS = {
    "transformer": ComponentLayout((DENOISER, ""), locate_in_flux),
    "vae": _VAE,
    "text_encoder": _encoder("clip_l"),
    "text_encoder_2": _encoder("t5xxl"),
}
_FLUX_SCHNELL = Layout("FLUX.1-schnell", "flux-schnell", _FLUX_COMPONENTS)
_FLUX_DEV = Layout("FLUX.1-dev", "flux-dev", _FLUX_COMPONENTS)
_CONTEXT_WIDTHS = {768: _SD1, 1024: _SD2, 2048: _SDXL, 1280: _REFINER}

# Beginning of a name in a file that is no pipeline -> what the file is and what to do.
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
    """Return the layout of a checkpoint.

    Args:
        file: the checkpoint, for errors.
        ranges: tensor -> where it is stored.

    Raises:
        SourceError: the file is no pipeline, or its layout is not known. The message says what it is.
    """
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
    if CONV_IN in ranges:  # a UNet alone: the width of its text features says which
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
    """Return whether a checkpoint's tensor is known to belong to no component."""
    return name.startswith(_LEFT_OUT) or name.endswith(_LEFT_OUT_ENDS) or name in ("v_pred", "ztsnr")
