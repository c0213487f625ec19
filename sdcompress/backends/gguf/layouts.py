"""Names of a denoiser's tensors in a GGUF file: those of diffusers, or those of the published checkpoint.

Other readers of GGUF (stable-diffusion.cpp, ComfyUI-GGUF) know the published names alone. `sources.single_file` knows
them, since it reads published checkpoints. A tensor of a published layout may be several of diffusers one below the
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdcompress.errors import UserError
from sdcompress.sources.single_file.layouts import DENOISER, Locate
from sdcompress.sources.single_file.transformer_names import locate_in_flux, locate_in_sd3
from sdcompress.sources.single_file.unet_names import locate_in_unet
from sdcompress.sources.spec import ComponentSpec

KEYS = ("original", "diffusers")
# Class -> where its published layout has a tensor, and the prefix by which diffusers finds the tensors.
_PUBLISHED: Mapping[str, tuple[Locate, str]] = {
    "UNet2DConditionModel": (locate_in_unet, DENOISER),
    "FluxTransformer2DModel": (locate_in_flux, ""),
    "SD3Transformer2DModel": (locate_in_sd3, ""),
}


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of one of the component's tensors."""

    tensor: str
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """The names of a file's tensors, the rows that each is made of, and the architecture that the file states."""

    architecture: str  # general.architecture, the word of ComfyUI-GGUF if it has one
    keys: str
    tensors: Mapping[str, tuple[Rows, ...]]


def layout_of(spec: ComponentSpec, keys: str | None) -> Layout:
    """Return the names of the component's tensors in the file.

    Args:
        keys: `original` or `diffusers`; None for the published names if they are known.

    Raises:
        UserError: the component has no published names.
    """
    known = _PUBLISHED.get(spec.class_name)
    if keys == "diffusers" or (keys is None and known is None):
        return Layout(_architecture(spec), "diffusers", {name: (_whole(spec, name),) for name in spec.tensors})
    if known is None:
        raise UserError(
            f"--keys original: the published names of a {spec.class_name} are not known, only those of "
            f"{', '.join(_PUBLISHED)}; use --keys diffusers"
        )
    return Layout(_architecture(spec), "original", _published_tensors(spec, *known))


def _architecture(spec: ComponentSpec) -> str:
    """Return `sdxl` for a UNet with SDXL's added embeddings, `sd1` for others (2.x too), and a transformer's name."""
    if spec.class_name == "UNet2DConditionModel":
        return "sdxl" if spec.config.get("addition_embed_type") == "text_time" else "sd1"
    return spec.class_name.removesuffix("Transformer2DModel").lower()


def _published_tensors(spec: ComponentSpec, locate: Locate, prefix: str) -> dict[str, tuple[Rows, ...]]:
    """Return published name -> rows. UserError for a tensor that the published layout does not have."""
    pieces: dict[str, dict[int, tuple[Rows, ...]]] = {}
    for tensor in spec.tensors:
        found = locate(tensor, spec.config)
        if found is None:
            raise UserError(
                f"--keys original: the published layout has no name for {spec.name}'s {tensor}; use --keys diffusers"
            )
        rows = _whole(spec, tensor)
        # diffusers has scale before shift, published models after it.
        middle = (rows.start + rows.stop) // 2
        halves = Rows(tensor, middle, rows.stop), Rows(tensor, rows.start, middle)
        of_name = pieces.setdefault(prefix + found.name, {})
        of_name[found.first] = halves if found.arrangement == "halves_swapped" else (rows,)
    return {name: tuple(rows for _, part in sorted(parts.items()) for rows in part) for name, parts in pieces.items()}


def _whole(spec: ComponentSpec, tensor: str) -> Rows:
    """Return all rows of a tensor."""
    shape = spec.tensors[tensor].shape
    return Rows(tensor, 0, shape[0] if shape else 1)
