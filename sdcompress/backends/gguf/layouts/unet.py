"""The published names of Stable Diffusion 1.x, 2.x and SDXL UNets: those of the latent-diffusion repository."""

from __future__ import annotations

from sdcompress.backends.gguf.layouts import Rows, whole
from sdcompress.errors import UserError
from sdcompress.sources.single_file.unet_names import locate_in_unet
from sdcompress.sources.spec import ComponentSpec

PREFIX = "model.diffusion_model."  # by which diffusers knows a UNet's tensors in a checkpoint; the others allow it


def architecture(spec: ComponentSpec) -> str:
    """`sdxl` for a UNet with SDXL's added embeddings, else `sd1`, which ComfyUI-GGUF also takes for 2.x."""
    return "sdxl" if spec.config.get("addition_embed_type") == "text_time" else "sd1"


def tensors(spec: ComponentSpec) -> dict[str, tuple[Rows, ...]]:
    """Published name -> rows. UserError for a UNet that is built otherwise than the published ones."""
    published: dict[str, tuple[Rows, ...]] = {}
    for name in spec.tensors:
        found = locate_in_unet(name, spec.config)
        if found is None:
            raise UserError(
                f"--keys original: the published layout has no name for {spec.name}'s {name}; use --keys diffusers"
            )
        published[PREFIX + found.name] = (whole(spec, name),)
    return published
