"""Sana: linear attention over latents of a deep compression autoencoder (32 pixels each), text read by Gemma 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdcompress.families.architecture import Architecture, BlockList, Family, OnnxInput, OnnxPart
from sdcompress.families.described.autoencoders import autoencoder_parts
from sdcompress.families.described.pixart import AS_ASKED, MASKED_TEXT, masked_text_inputs
from sdcompress.families.described.unet import VALUES
from sdcompress.sources.spec import ComponentSpec

FAMILY = Family("Sana", ("SanaPipeline",), encoded=MASKED_TEXT, call=AS_ASKED)


def _text_encoder(spec: ComponentSpec, pipeline_class: str) -> tuple[OnnxPart, ...]:
    tokens = ("batch", "sequence")
    inputs = (OnnxInput("input_ids", tokens, "int64"), OnnxInput("attention_mask", tokens, "int64"))
    return (OnnxPart(spec.name, spec.name, "text_encoder", inputs, ("last_hidden_state",)),)


# Defaults of the class.
_DEFAULTS = {"in_channels": 32, "caption_channels": 2304}


def _transformer(spec: ComponentSpec, pipeline_class: str) -> tuple[OnnxPart, ...]:
    config: Mapping[str, Any] = {**_DEFAULTS, **spec.config}
    inputs = masked_text_inputs(config)
    if config.get("guidance_embeds"):
        inputs.append(OnnxInput("guidance", ("batch",)))
    return (OnnxPart(spec.name, spec.name, "transformer", tuple(inputs), ("out_hidden_states",)),)


ARCHITECTURES = (
    Architecture(
        "SanaTransformer2DModel",
        "denoiser",
        sensitive=("patch_embed", "time_embed", "caption_projection", "proj_out"),
        grouped=("*.ff.conv_depth",),
        folds=(VALUES,),  # its self-attention is linear in the values, too
        onnx_parts=_transformer,
        calibrated=True,
        reads_text=r"\.attn2\.(to_k|to_v)$",
        blocks=(BlockList("transformer_blocks", "num_layers"),),
    ),
    Architecture("Gemma2Model", "text encoder", onnx_parts=_text_encoder, calibrated=True),
    Architecture(
        "AutoencoderDC",
        "autoencoder",
        sensitive=("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out"),
        grouped=("*.conv_depth", "*.to_qkv_multiscale.*"),
        onnx_parts=lambda spec, _: autoencoder_parts(spec, "latent_sample"),
        calibrated=True,
    ),
)
