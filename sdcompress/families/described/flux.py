"""FLUX.1: a transformer over packed latents and text (double and single blocks), CLIP and T5 text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdcompress.families.architecture import Architecture, BlockList, Family, OnnxInput, OnnxPart
from sdcompress.families.described.unet import VALUES
from sdcompress.sources.spec import ComponentSpec

FAMILY = Family(
    "FLUX.1",
    ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    encoded=("prompt_embeds", "pooled_prompt_embeds", ""),  # the call computes the positions of text tokens itself
    guided=False,  # its guidance is distilled into the transformer
    pictures={
        "FluxImg2ImgPipeline": {"image": "image"},
        "FluxInpaintPipeline": {"image": "image", "mask_image": "mask_image"},
    },
)


# Defaults of the class.
_DEFAULTS = {
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": (16, 56, 56),
}


def _parts(spec: ComponentSpec, pipeline_class: str) -> tuple[OnnxPart, ...]:
    config: Mapping[str, Any] = {**_DEFAULTS, **spec.config}
    axes = len(config["axes_dims_rope"])
    inputs = [
        OnnxInput("hidden_states", ("batch", "patches", config["in_channels"])),
        OnnxInput("encoder_hidden_states", ("batch", "sequence", config["joint_attention_dim"])),
        OnnxInput("pooled_projections", ("batch", config["pooled_projection_dim"])),
        OnnxInput("timestep", ("batch",)),
        OnnxInput("img_ids", ("patches", axes)),
        OnnxInput("txt_ids", ("sequence", axes)),
    ]
    if config.get("guidance_embeds"):
        inputs.append(OnnxInput("guidance", ("batch",)))
    return (OnnxPart(spec.name, spec.name, "transformer", tuple(inputs), ("out_hidden_states",)),)


ARCHITECTURES = (
    Architecture(
        "FluxTransformer2DModel",
        "denoiser",
        sensitive=("x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out"),
        folds=(VALUES,),
        onnx_parts=_parts,
        calibrated=True,
        blocks=(
            BlockList("transformer_blocks", "num_layers"),
            BlockList("single_transformer_blocks", "num_single_layers"),
        ),
    ),
)
