"""Layers that low bits hurt most, kept in their precision by formats of fewer than eight bits unless a recipe says so.

Published sensitivities (MixDQ, arXiv:2405.17873; Q-Diffusion, arXiv:2302.04304; Apple's mixed-bit palettization)
agree on the time embedding and its projections, the first and last layers, the shortcut convolutions and the
projections around attention. On SD 1.5's UNet they hold 8.8 % of the weights.
"""

from __future__ import annotations

UNET = (
    "conv_in",
    "conv_out",
    "time_embedding",
    "add_embedding",
    "*.time_emb_proj",
    "*.conv_shortcut",
    "*.proj_in",
    "*.proj_out",
)
TRANSFORMER = (
    "pos_embed",
    "x_embedder",
    "context_embedder",
    "time_text_embed",
    "norm_out",
    "proj_out",
)
AUTOENCODER = (
    "encoder.conv_in",
    "encoder.conv_out",
    "decoder.conv_in",
    "decoder.conv_out",
    "quant_conv",
    "post_quant_conv",
)


def sensitive_patterns(class_name: str) -> tuple[str, ...]:
    """The patterns of the sensitive layers of a component's class; none for classes nothing is known about."""
    if class_name.startswith("UNet"):
        return UNET
    if class_name.endswith("Transformer2DModel"):
        return TRANSFORMER
    if class_name.startswith("Autoencoder"):
        return AUTOENCODER
    return ()
