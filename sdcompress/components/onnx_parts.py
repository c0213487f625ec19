"""What each component becomes in ONNX: its parts (folders with a graph), their inputs and outputs.

Folders and names are those that optimum's exporter writes, so that its ONNX Runtime pipelines open the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdcompress.errors import UserError
from sdcompress.spec import ComponentSpec

TEXT_ENCODERS = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection"})
EXPORTABLE = TEXT_ENCODERS | {"UNet2DConditionModel", "AutoencoderKL", "StableDiffusionSafetyChecker"}
AXES = ("batch", "height", "width", "sequence")


@dataclass(frozen=True)
class OnnxInput:
    """One input of a graph; a named dimension may take any size unless the export fixes it."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float"  # or "int64"


@dataclass(frozen=True)
class OnnxPart:
    """One graph of a component: the folder it lies in and what goes in and out."""

    folder: str
    component: str
    kind: str  # text_encoder, unet, vae_encoder, vae_decoder or safety_checker
    inputs: tuple[OnnxInput, ...]
    outputs: tuple[str, ...]
    prefixes: tuple[str, ...] = ()  # of the parameters it holds; none: all of the component's

    def holds(self, parameter: str) -> bool:
        """Whether the component's parameter is in this part."""
        return not self.prefixes or parameter.startswith(self.prefixes)


def onnx_parts(spec: ComponentSpec) -> tuple[OnnxPart, ...]:
    """The parts of a component. UserError for a class whose export is not known."""
    if spec.class_name in TEXT_ENCODERS:
        return (_text_encoder(spec),)
    if spec.class_name == "UNet2DConditionModel":
        return (_unet(spec),)
    if spec.class_name == "AutoencoderKL":
        return _autoencoder(spec)
    if spec.class_name == "StableDiffusionSafetyChecker":
        return (_safety_checker(spec),)
    raise UserError(
        f"{spec.name}: a {spec.class_name} cannot be exported to ONNX yet; use target: torch "
        f"(exportable: {', '.join(sorted(EXPORTABLE))})"
    )


def vae_scale(components: Mapping[str, ComponentSpec]) -> int:
    """Pixels per latent along an edge: the pipeline's VAE halves the size between its blocks."""
    vae = components.get("vae")
    return 2 ** (len(vae.config["block_out_channels"]) - 1) if vae and "block_out_channels" in vae.config else 8


def fix_axes(part: OnnxPart, sizes: Mapping[str, int]) -> tuple[OnnxInput, ...]:
    """The part's inputs with the named dimensions in `sizes` fixed; sizes are those of the part's own tensors."""
    return tuple(
        OnnxInput(each.name, tuple(sizes.get(size, size) if isinstance(size, str) else size for size in each.shape),
                  each.dtype)
        for each in part.inputs
    )  # fmt: skip


def _text_encoder(spec: ComponentSpec) -> OnnxPart:
    config = text_config(spec)
    pooled = ("text_embeds", "last_hidden_state")
    if spec.class_name == "CLIPTextModel":
        pooled = ("last_hidden_state", "pooler_output")
    hidden = tuple(f"hidden_states.{layer}" for layer in range(config["num_hidden_layers"]))
    inputs = (OnnxInput("input_ids", ("batch", "sequence"), "int64"),)
    return OnnxPart(spec.name, spec.name, "text_encoder", inputs, (*pooled, *hidden))


def text_config(spec: ComponentSpec) -> Mapping[str, int]:
    """The sizes of a text encoder, whichever way its config nests them; absent ones are CLIPTextConfig's defaults."""
    config = spec.config.get("text_config") or spec.config
    return {"num_hidden_layers": 12, "max_position_embeddings": 77, **config}


def _unet(spec: ComponentSpec) -> OnnxPart:
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
        ids = 5 if config["projection_class_embeddings_input_dim"] == 2560 else 6  # SDXL's refiner has five
        pooled = config["projection_class_embeddings_input_dim"] - ids * config["addition_time_embed_dim"]
        inputs += [OnnxInput("text_embeds", ("batch", pooled)), OnnxInput("time_ids", ("batch", ids))]
    elif added is not None or config.get("class_embed_type") or config.get("encoder_hid_dim_type"):
        raise UserError(f"{spec.name}: its additional embeddings cannot be exported yet; use target: torch")
    return OnnxPart(spec.name, spec.name, "unet", tuple(inputs), ("out_sample",))


def _autoencoder(spec: ComponentSpec) -> tuple[OnnxPart, OnnxPart]:
    config = spec.config
    picture = OnnxInput("sample", ("batch", config.get("in_channels", 3), "height", "width"))
    latents = OnnxInput("latent_sample", ("batch", config.get("latent_channels", 4), "height", "width"))
    return (
        OnnxPart("vae_encoder", spec.name, "vae_encoder", (picture,), ("latent_parameters",), ("encoder.", "quant_")),
        OnnxPart("vae_decoder", spec.name, "vae_decoder", (latents,), ("sample",), ("decoder.", "post_quant_")),
    )


def _safety_checker(spec: ComponentSpec) -> OnnxPart:
    size = (spec.config.get("vision_config") or {}).get("image_size", 224)
    inputs = (
        OnnxInput("clip_input", ("batch", 3, size, size)),
        OnnxInput("images", ("batch", "height", "width", 3)),
    )
    return OnnxPart(spec.name, spec.name, "safety_checker", inputs, ("out_images", "has_nsfw_concepts"))
