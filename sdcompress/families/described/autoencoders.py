"""The autoencoders that most families share: AutoencoderKL, and the tiny one (TAESD)."""

from __future__ import annotations

from sdcompress.families.architecture import Architecture, OnnxInput, OnnxPart
from sdcompress.families.described.unet import BLOCK_FOLDS
from sdcompress.sources.spec import ComponentSpec

_SENSITIVE = (
    "encoder.conv_in",
    "encoder.conv_out",
    "decoder.conv_in",
    "decoder.conv_out",
    "quant_conv",
    "post_quant_conv",
)


def autoencoder_parts(spec: ComponentSpec, encoded: str) -> tuple[OnnxPart, OnnxPart]:
    """Return the graphs of the encoder and the decoder; `encoded` is optimum's name for the encoder's output."""
    config = spec.config
    picture = OnnxInput("sample", ("batch", config.get("in_channels", 3), "height", "width"))
    latents = OnnxInput("latent_sample", ("batch", config.get("latent_channels", 4), "height", "width"))
    return (
        OnnxPart("vae_encoder", spec.name, "vae_encoder", (picture,), (encoded,), ("encoder.", "quant_")),
        OnnxPart("vae_decoder", spec.name, "vae_decoder", (latents,), ("sample",), ("decoder.", "post_quant_")),
    )


ARCHITECTURES = (
    Architecture(
        "AutoencoderKL",
        "autoencoder",
        sensitive=_SENSITIVE,
        folds=BLOCK_FOLDS,
        onnx_parts=lambda spec, _: autoencoder_parts(spec, "latent_parameters"),
        calibrated=True,
    ),
    Architecture(
        "AutoencoderTiny",
        "autoencoder",
        sensitive=("encoder.layers.0", "decoder.layers.0", "decoder.layers.18"),
        onnx_parts=lambda spec, _: autoencoder_parts(spec, "latent_sample"),
        calibrated=True,
    ),
)
