"""CLIP's text encoders, which most families use, and Stable Diffusion 1's safety checker."""

from __future__ import annotations

from collections.abc import Mapping

from sdcompress.families.architecture import Architecture, FoldRule, OnnxInput, OnnxPart
from sdcompress.sources.spec import ComponentSpec

TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
_FOLDS = (
    FoldRule("layer_norm1", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    FoldRule("layer_norm2", ("mlp.fc1",)),
    FoldRule("self_attn.v_proj", ("self_attn.out_proj",)),
)
_TOKEN_LAYERS = r"(^|\.)encoder\.layers\.\d+\."


def text_config(spec: ComponentSpec) -> Mapping[str, int]:
    """Return the sizes in a CLIP text encoder's config, nested or not; CLIPTextConfig's defaults where it has none."""
    config = spec.config.get("text_config") or spec.config
    return {"num_hidden_layers": 12, "max_position_embeddings": 77, **config}


def _text_encoder(spec: ComponentSpec, pipeline_class: str) -> tuple[OnnxPart, ...]:
    config = text_config(spec)
    pooled = ("text_embeds", "last_hidden_state")
    if spec.class_name == "CLIPTextModel":
        pooled = ("last_hidden_state", "pooler_output")
    hidden = tuple(f"hidden_states.{layer}" for layer in range(config["num_hidden_layers"]))
    inputs = (OnnxInput("input_ids", ("batch", "sequence"), "int64"),)
    return (OnnxPart(spec.name, spec.name, "text_encoder", inputs, (*pooled, *hidden)),)


def _safety_checker(spec: ComponentSpec, pipeline_class: str) -> tuple[OnnxPart, ...]:
    size = (spec.config.get("vision_config") or {}).get("image_size", 224)
    inputs = (
        OnnxInput("clip_input", ("batch", 3, size, size)),
        OnnxInput("images", ("batch", "height", "width", 3)),
    )
    return (OnnxPart(spec.name, spec.name, "safety_checker", inputs, ("out_images", "has_nsfw_concepts")),)


ARCHITECTURES = (
    *(
        Architecture(
            class_name,
            "text encoder",
            folds=_FOLDS,
            onnx_parts=_text_encoder,
            calibrated=True,
            reads_text=_TOKEN_LAYERS,
        )
        for class_name in TEXT_ENCODERS
    ),
    Architecture("StableDiffusionSafetyChecker", "safety checker", folds=_FOLDS, onnx_parts=_safety_checker),
)
