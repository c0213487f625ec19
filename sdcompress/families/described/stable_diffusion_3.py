"""Stable Diffusion 3: a transformer over latents and text together (MMDiT), three text encoders, T5 among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdcompress.families.architecture import Architecture, BlockList, Family, OnnxInput, OnnxPart
from sdcompress.families.described.unet import VALUES
from sdcompress.sources.spec import ComponentSpec

FAMILY = Family(
    "Stable Diffusion 3",
    ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    encoded=("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    pictures={
        "StableDiffusion3Img2ImgPipeline": {"image": "image"},
        "StableDiffusion3InpaintPipeline": {"image": "image", "mask_image": "mask_image"},
    },
)


# Defaults of the class.
_DEFAULTS = {"in_channels": 16, "joint_attention_dim": 4096, "pooled_projection_dim": 2048}


def _parts(spec: ComponentSpec, pipeline_class: str) -> tuple[OnnxPart, ...]:
    config: Mapping[str, Any] = {**_DEFAULTS, **spec.config}
    inputs = (
        OnnxInput("hidden_states", ("batch", config["in_channels"], "height", "width")),
        OnnxInput("encoder_hidden_states", ("batch", "sequence", config["joint_attention_dim"])),
        OnnxInput("pooled_projections", ("batch", config["pooled_projection_dim"])),
        OnnxInput("timestep", ("batch",)),
    )
    return (OnnxPart(spec.name, spec.name, "transformer", inputs, ("out_hidden_states",)),)


ARCHITECTURES = (
    Architecture(
        "SD3Transformer2DModel",
        "denoiser",
        sensitive=("pos_embed", "context_embedder", "time_text_embed", "norm_out", "proj_out"),
        folds=(VALUES,),  # its norms are scaled by layers that read the timestep
        onnx_parts=_parts,
        calibrated=True,
        # The last block does not update the text, which nothing reads afterwards (`context_pre_only`).
        blocks=(BlockList("transformer_blocks", "num_layers", indexed=("dual_attention_layers",), last_stays=True),),
    ),
)
