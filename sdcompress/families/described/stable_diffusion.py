"""Stable Diffusion 1 and 2 in all their uses: text to image, over a picture, inpainting, ControlNet, few-step LCM.

Whether a UNet predicts noise or velocity, and how many channels it takes, is in its configs.
"""

from __future__ import annotations

from sdcompress.families.architecture import Family

FAMILY = Family(
    "Stable Diffusion",
    (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    ),
    encoded=("prompt_embeds", "negative_prompt_embeds"),
    pictures={
        "StableDiffusionImg2ImgPipeline": {"image": "image"},
        "LatentConsistencyModelImg2ImgPipeline": {"image": "image"},
        "StableDiffusionInpaintPipeline": {"image": "image", "mask_image": "mask_image"},
        "StableDiffusionControlNetPipeline": {"image": "control_image"},
    },
)
