"""What each component becomes in ONNX: its parts (folders with a graph), their inputs and outputs.

Folders and names are those that optimum's exporter writes, so that its ONNX Runtime pipelines open the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdcompress.errors import UserError
from sdcompress.families.registry import architecture_of, known_architectures
from sdcompress.sources.spec import ComponentSpec

# Inputs that pipelines give inside of `added_cond_kwargs`: SDXL's, and PixArt's.
ADDED = ("text_embeds", "time_ids", "resolution", "aspect_ratio")
# What a ControlNet gives and the UNet beside it adds up; the first are numbered.
DOWN_RESIDUAL, MID_RESIDUAL = "down_block_residual_", "mid_block_residual"


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
    kind: str  # text_encoder, unet, transformer, controlnet, vae_encoder, vae_decoder or safety_checker
    inputs: tuple[OnnxInput, ...]
    outputs: tuple[str, ...]
    prefixes: tuple[str, ...] = ()  # of the parameters it holds; none: all of the component's

    def holds(self, parameter: str) -> bool:
        """Whether the component's parameter is in this part."""
        return not self.prefixes or parameter.startswith(self.prefixes)


def onnx_parts(spec: ComponentSpec) -> tuple[OnnxPart, ...]:
    """The parts of a component. UserError for a class whose export is not known."""
    parts_of = architecture_of(spec.class_name).onnx_parts
    if parts_of is None:
        exportable = sorted(name for name, one in known_architectures().items() if one.onnx_parts)
        raise UserError(
            f"{spec.name}: a {spec.class_name} cannot be exported to ONNX yet; use target: torch "
            f"(exportable: {', '.join(exportable)})"
        )
    return parts_of(spec, spec.pipeline_class)


def vae_scale(components: Mapping[str, ComponentSpec]) -> int:
    """Pixels per latent along an edge: the pipeline's VAE halves the size between its blocks."""
    config = components["vae"].config if "vae" in components else {}
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    return 2 ** (len(blocks) - 1) if blocks else 8


def fix_axes(part: OnnxPart, sizes: Mapping[str, int]) -> tuple[OnnxInput, ...]:
    """The part's inputs with the named dimensions in `sizes` fixed; sizes are those of the part's own tensors."""
    if not sizes:
        return part.inputs
    return tuple(OnnxInput(each.name, traced_shape(each, sizes), each.dtype) for each in part.inputs)


def traced_shape(each: OnnxInput, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The input's shape where the named dimensions have these sizes."""
    return tuple(_axis_size(size, sizes) if isinstance(size, str) else size for size in each.shape)


def _axis_size(axis: str, sizes: Mapping[str, int]) -> int:
    """The size of an axis: one of `sizes`, or `height/4` (halved twice, rounding up as convolutions do), `height*8`."""
    name, operator, factor = axis.partition("/" if "/" in axis else "*")
    if not operator:
        return sizes[name]
    return -(-sizes[name] // int(factor)) if operator == "/" else sizes[name] * int(factor)


def text_config(spec: ComponentSpec) -> Mapping[str, int]:
    """The sizes of a CLIP text encoder, however its config nests them; absent ones are CLIPTextConfig's defaults."""
    config = spec.config.get("text_config") or spec.config
    return {"num_hidden_layers": 12, "max_position_embeddings": 77, **config}
