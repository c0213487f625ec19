"""The UNet of Stable Diffusion 1, 2 and XL, and its ControlNets."""

from __future__ import annotations

from sdcompress.errors import UserError
from sdcompress.families.architecture import DOWN_RESIDUAL, MID_RESIDUAL, Architecture, FoldRule, OnnxInput, OnnxPart
from sdcompress.sources.spec import ComponentSpec

SENSITIVE = (
    "conv_in",
    "conv_out",
    "time_embedding",
    "add_embedding",
    "*.time_emb_proj",
    "*.conv_shortcut",
    "*.proj_in",
    "*.proj_out",
)
# diffusers' Attention: its output has the channels of its values in the same order.
VALUES = FoldRule("to_v", ("to_out.0",), also="add_v_proj", optional=("to_add_out",))
_SELF_ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
BLOCK_FOLDS = (
    FoldRule("norm", ("proj_in",)),  # of Transformer2DModel
    # Where blocks read the text alone, some attn1 read it instead of what norm1 gives.
    FoldRule("norm1", _SELF_ATTENTION, unless=("only_cross_attention", "mid_block_only_cross_attention")),
    FoldRule("norm2", ("attn2.to_q",)),  # its keys and values come from the text
    FoldRule("norm3", ("ff.net.0.proj",)),
    FoldRule("group_norm", ("to_q", "to_k", "to_v")),
    FoldRule("ff.net.0.proj", ("ff.net.2",), gated=True),
    VALUES,
)
# Layers that read text tokens. The first, the start of text, is an outlier (MixDQ, arXiv:2405.17873, section 3.2).
READS_TEXT = r"\.attn2\.(to_k|to_v)$"
_CONTROLLED = "ControlNet"  # in the names of pipelines whose UNet adds a ControlNet's outputs


def _unet(spec: ComponentSpec, pipeline_class: str) -> tuple[OnnxPart, ...]:
    inputs = list(_shared_inputs(spec))
    if _CONTROLLED in pipeline_class:
        inputs += [
            OnnxInput(f"{DOWN_RESIDUAL}{index}", ("batch", channels, *_edges(level)))
            for index, (channels, level) in enumerate(residuals(spec))
        ]
        channels, level = spec.config["block_out_channels"][-1], len(spec.config["block_out_channels"]) - 1
        inputs.append(OnnxInput(MID_RESIDUAL, ("batch", channels, *_edges(level))))
    return (OnnxPart(spec.name, spec.name, "unet", tuple(inputs), ("out_sample",)),)


def _controlnet(spec: ComponentSpec, pipeline_class: str) -> tuple[OnnxPart, ...]:
    scale = 2 ** (len(spec.config.get("conditioning_embedding_out_channels", (16, 32, 96, 256))) - 1)
    channels = spec.config.get("conditioning_channels", 3)
    picture = OnnxInput("controlnet_cond", ("batch", channels, f"height*{scale}", f"width*{scale}"))
    outputs = (*(f"{DOWN_RESIDUAL}{index}" for index in range(len(residuals(spec)))), MID_RESIDUAL)
    return (OnnxPart(spec.name, spec.name, "controlnet", (*_shared_inputs(spec), picture), outputs),)


def residuals(spec: ComponentSpec) -> list[tuple[int, int]]:
    """Return channels and level of each skip connection, in order; the level counts halvings of the latents' size."""
    widths = spec.config["block_out_channels"]
    layers = spec.config["layers_per_block"]
    per_block = [layers] * len(widths) if isinstance(layers, int) else list(layers)
    found = [(widths[0], 0)]
    for level, (width, count) in enumerate(zip(widths, per_block, strict=True)):
        found += [(width, level)] * count
        if level < len(widths) - 1:
            found.append((width, level + 1))
    return found


def _edges(level: int) -> tuple[str, str]:
    """Return the names of height and width after that many halvings."""
    return ("height", "width") if level == 0 else (f"height/{2**level}", f"width/{2**level}")


def _shared_inputs(spec: ComponentSpec) -> tuple[OnnxInput, ...]:
    config = spec.config
    cross = config["cross_attention_dim"]
    if not isinstance(cross, int):
        raise UserError(f"{spec.name}: cross_attention_dim {cross} per block cannot be exported yet; use target: torch")
    inputs = [
        OnnxInput("sample", ("batch", config["in_channels"], "height", "width")),
        OnnxInput("timestep", ()),
        OnnxInput("encoder_hidden_states", ("batch", "sequence", cross)),
    ]
    if config.get("time_cond_proj_dim"):
        inputs.append(OnnxInput("timestep_cond", ("batch", config["time_cond_proj_dim"])))
    added = config.get("addition_embed_type")
    if added == "text_time":
        total, width = config["projection_class_embeddings_input_dim"], config["addition_time_embed_dim"]
        ids = added_numbers(total)
        inputs += [OnnxInput("text_embeds", ("batch", total - ids * width)), OnnxInput("time_ids", ("batch", ids))]
    elif added is not None or config.get("class_embed_type") or config.get("encoder_hid_dim_type"):
        raise UserError(f"{spec.name}: its additional embeddings cannot be exported yet; use target: torch")
    return tuple(inputs)


def added_numbers(total: int) -> int:
    """Return how many numbers (time_ids) SDXL's UNet takes: six, or five in SDXL's refiner.

    Args:
        total: `projection_class_embeddings_input_dim` of its config; 2560 in the published refiner alone.
    """
    return 5 if total == 2560 else 6


ARCHITECTURES = (
    Architecture(
        "UNet2DConditionModel",
        "denoiser",
        sensitive=SENSITIVE,
        folds=BLOCK_FOLDS,
        onnx_parts=_unet,
        calibrated=True,
        reads_text=READS_TEXT,
    ),
    Architecture(
        "ControlNetModel",
        "control network",
        sensitive=(*SENSITIVE, "controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block"),
        folds=BLOCK_FOLDS,
        onnx_parts=_controlnet,
    ),
)
