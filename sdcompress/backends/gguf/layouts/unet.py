"""The published names of Stable Diffusion 1.x, 2.x and SDXL UNets: those of the latent-diffusion repository."""

from __future__ import annotations

from sdcompress.backends.gguf.layouts import Rows, whole
from sdcompress.errors import UserError
from sdcompress.spec import ComponentSpec

PREFIX = "model.diffusion_model."  # by which diffusers knows a UNet's tensors in a checkpoint; the others allow it
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def architecture(spec: ComponentSpec) -> str:
    """`sdxl` for a UNet with SDXL's added embeddings, else `sd1`, which ComfyUI-GGUF also takes for 2.x."""
    return "sdxl" if spec.config.get("addition_embed_type") == "text_time" else "sd1"


def tensors(spec: ComponentSpec) -> dict[str, tuple[Rows, ...]]:
    """Published name -> rows. UserError for a UNet that is built otherwise than the published ones."""
    layers = spec.config.get("layers_per_block", 2)
    if not isinstance(layers, int):
        raise UserError(
            f"--keys original: {spec.name} has {layers} layers in its blocks, and the published layout wants the same "
            f"number in each; use --keys diffusers"
        )
    return {PREFIX + _published(spec, name, layers): (whole(spec, name),) for name in spec.tensors}


def _published(spec: ComponentSpec, tensor: str, layers: int) -> str:
    layer, _, leaf = tensor.rpartition(".")
    if layer in _OUTSIDE:
        return f"{_OUTSIDE[layer]}.{leaf}"
    words = layer.split(".")
    if words[0] == "mid_block":
        index = int(words[2])
        place = f"middle_block.{2 * index + (words[1] == 'attentions')}"
        return f"{place}.{_within(words[1], words[3:])}.{leaf}"
    if words[0] not in ("down_blocks", "up_blocks") or len(words) < 4:
        raise UserError(
            f"--keys original: the published layout has no name for {spec.name}'s {tensor}; use --keys diffusers"
        )
    block, kind, index = int(words[1]), words[2], int(words[3])
    slot = block * (layers + 1)  # every block but the last down has a slot for each layer and one more
    if words[0] == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{slot + layers + 1}.0.op.{leaf}"
        return f"input_blocks.{slot + index + 1}.{kind == 'attentions':d}.{_within(kind, words[4:])}.{leaf}"
    if kind == "upsamplers":
        last = slot + layers
        has_attention = any(name.startswith(f"up_blocks.{block}.attentions.") for name in spec.tensors)
        return f"output_blocks.{last}.{1 + has_attention}.conv.{leaf}"
    return f"output_blocks.{slot + index}.{kind == 'attentions':d}.{_within(kind, words[4:])}.{leaf}"


def _within(kind: str, words: list[str]) -> str:
    """A layer's name inside its resnet or attention, whose names are the same in both layouts."""
    return _RESNET[".".join(words)] if kind == "resnets" else ".".join(words)
