"""The published names of Stable Diffusion 1.x, 2.x and SDXL UNets, from the latent-diffusion repository."""

from __future__ import annotations

from sdcompress.backends.gguf.layouts import Rows, whole
from sdcompress.errors import UserError
from sdcompress.sources.single_file.unet_names import locate_in_unet
from sdcompress.sources.spec import ComponentSpec

PREFIX = "model.diffusion_model."  # diffusers finds a UNet's tensors by it; other readers accept it


def architecture(spec: ComponentSpec) -> str:
    """Return `sdxl` for a UNet with SDXL's added embeddings, else `sd1`, which ComfyUI-GGUF uses for 2.x too."""
    return "sdxl" if spec.config.get("addition_embed_type") == "text_time" else "sd1"


def tensors(spec: ComponentSpec) -> dict[str, tuple[Rows, ...]]:
    """Return published name -> rows.

    Raises:
        UserError: the UNet has a tensor that published ones do not have.
    """
    published: dict[str, tuple[Rows, ...]] = {}
    for name in spec.tensors:
        found = locate_in_unet(name, spec.config)
        if found is None:
            raise UserError(
                f"--keys original: the published layout has no name for {spec.name}'s {name}; use --keys diffusers"
            )
        published[PREFIX + found.name] = (whole(spec, name),)
    return published
