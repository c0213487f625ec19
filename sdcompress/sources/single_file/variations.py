"""What tells a checkpoint's relatives apart: channels that go in, and whether it predicts noise or velocity."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import TensorRange
from sdcompress.sources.single_file.layouts import CONV_IN
from sdcompress.sources.single_file.templates import SCHEDULER, Template
from sdcompress.sources.spec import parameter

PREDICTIONS = ("epsilon", "v_prediction")
SD2_BASE_PIXELS = 512
_VAE_SCALE = 8

# (class for text to image, channels that go in) -> class of its relative
_RELATIVES = {
    ("StableDiffusionPipeline", 9): "StableDiffusionInpaintPipeline",
    ("StableDiffusionPipeline", 8): "StableDiffusionInstructPix2PixPipeline",
    ("StableDiffusionXLPipeline", 9): "StableDiffusionXLInpaintPipeline",
    ("StableDiffusionXLPipeline", 8): "StableDiffusionXLInstructPix2PixPipeline",
}


def with_channels(template: Template, checkpoint: Mapping[str, TensorRange], file: Path) -> Template:
    """The catalog's pipeline as the relative that takes the channels of the checkpoint's first convolution."""
    unet = template.components.get("unet")
    if not template.is_known or unet is None or CONV_IN not in checkpoint:
        return template
    channels = checkpoint[CONV_IN].shape[1]
    if channels == unet.config["in_channels"]:
        return template
    relative = _RELATIVES.get((str(template.model_index["_class_name"]), channels))
    if relative is None:
        raise SourceError(
            f"{file}: its UNet takes {channels} channels, as no pipeline of {template.title} that sdcompress knows; "
            f"name a diffusers folder of the same kind with --like"
        )
    width = unet.tensors["conv_in.weight"].shape
    tensors = {**unet.tensors, "conv_in.weight": parameter((width[0], channels, *width[2:]), "F16")}
    unet = unet.replace(config={**unet.config, "in_channels": channels}, tensors=tensors)
    return dataclasses.replace(
        template,
        title=f"{template.title} ({relative})",
        model_index={**template.model_index, "_class_name": relative},
        components={**template.components, "unet": unet},
    )


def with_prediction(
    template: Template, checkpoint: Mapping[str, TensorRange], prediction: str | None, layout: str
) -> tuple[Template, list[str]]:
    """The template with the scheduler for what the checkpoint predicts, and what is to be said of it.

    `prediction` is what the user says; None asks the checkpoint: SDXL's has a tensor `v_pred`, others say nothing.
    """
    if prediction is not None and prediction not in PREDICTIONS:
        raise SourceError(f"--prediction {prediction}: use one of {', '.join(PREDICTIONS)}")
    if SCHEDULER not in template.files:
        return template, []
    config = json.loads(template.files[SCHEDULER])
    notes: list[str] = []
    if prediction is None and "v_pred" in checkpoint:
        prediction = "v_prediction"
    if prediction is None:
        if layout == "Stable Diffusion 2.x" and template.is_known:
            notes.append(
                "Stable Diffusion 2.x does not say what it predicts: read as the 768-pixel model (v_prediction); for a "
                "512-pixel base model give --prediction epsilon"
            )
        return template, notes
    config["prediction_type"] = prediction
    if "ztsnr" in checkpoint:  # trained to start from noise alone
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    template = dataclasses.replace(template, files={**template.files, SCHEDULER: json.dumps(config, indent=2).encode()})
    if layout == "Stable Diffusion 2.x" and template.is_known and prediction == "epsilon":
        unet = template.components["unet"]
        unet = unet.replace(config={**unet.config, "sample_size": SD2_BASE_PIXELS // _VAE_SCALE})
        template = dataclasses.replace(template, components={**template.components, "unet": unet})
    notes.append(f"the scheduler is set to prediction_type {prediction}")
    return template, notes
