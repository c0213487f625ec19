"""Stable Diffusion XL: base and turbo (text to image), its refiner (over a picture), inpainting, ControlNet."""

from __future__ import annotations

from sdcompress.families.architecture import Family

FAMILY = Family(
    "Stable Diffusion XL",
    (
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
    ),
    encoded=("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    pictures={
        "StableDiffusionXLImg2ImgPipeline": {"image": "image"},
        "StableDiffusionXLInpaintPipeline": {"image": "image", "mask_image": "mask_image"},
        "StableDiffusionXLControlNetPipeline": {"image": "control_image"},
    },
)
