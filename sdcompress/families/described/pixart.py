"""PixArt-alpha and PixArt-Sigma: a diffusion transformer that reads T5's output by cross-attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdcompress.families.architecture import Architecture, BlockList, Family, OnnxInput, OnnxPart
from sdcompress.families.described.unet import VALUES
from sdcompress.sources.spec import ComponentSpec

# What `encode_prompt` returns where the transformer gets a mask of the padding, as Sana's does too.
MASKED_TEXT = (
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
)
# Pictures of the given size instead of the nearest published aspect ratio; captions unchanged.
AS_ASKED = {"use_resolution_binning": False, "clean_caption": False}

FAMILY = Family("PixArt", ("PixArtAlphaPipeline", "PixArtSigmaPipeline"), encoded=MASKED_TEXT, call=AS_ASKED)


# Defaults of the class.
_DEFAULTS = {"in_channels": 4, "caption_channels": 4096, "sample_size": 128}


def _parts(spec: ComponentSpec, pipeline_class: str) -> tuple[OnnxPart, ...]:
    config: Mapping[str, Any] = {**_DEFAULTS, **spec.config}
    inputs = masked_text_inputs(config)
    conditions = config.get("use_additional_conditions")
    if config["sample_size"] == 128 if conditions is None else conditions:
        inputs += [OnnxInput("resolution", ("batch", 2)), OnnxInput("aspect_ratio", ("batch", 1))]
    return (OnnxPart(spec.name, spec.name, "transformer", tuple(inputs), ("out_hidden_states",)),)


def masked_text_inputs(config: Mapping[str, Any]) -> list[OnnxInput]:
    """Return the inputs for latents, text with its mask, and a timestep for each picture."""
    return [
        OnnxInput("hidden_states", ("batch", config["in_channels"], "height", "width")),
        OnnxInput("encoder_hidden_states", ("batch", "sequence", config["caption_channels"])),
        OnnxInput("encoder_attention_mask", ("batch", "sequence"), "int64"),
        OnnxInput("timestep", ("batch",)),
    ]


ARCHITECTURES = (
    Architecture(
        "PixArtTransformer2DModel",
        "denoiser",
        sensitive=("pos_embed", "adaln_single", "caption_projection", "proj_out"),
        folds=(VALUES,),
        onnx_parts=_parts,
        calibrated=True,
        reads_text=r"\.attn2\.(to_k|to_v)$",
        blocks=(BlockList("transformer_blocks", "num_layers"),),
    ),
)
