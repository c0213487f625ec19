"""Names of a denoiser's tensors in a GGUF file: those of diffusers, or those of the published checkpoint.

Other readers of GGUF (stable-diffusion.cpp, ComfyUI-GGUF) know the published names alone. Each family has a file here.
A tensor of the published layout may be several tensors of diffusers one below the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sdcompress.errors import UserError
from sdcompress.sources.spec import ComponentSpec

KEYS = ("original", "diffusers")


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
    from sdcompress.backends.gguf.layouts import flux, sd3, unet

    families: dict[str, tuple[Callable[[ComponentSpec], str], Callable[[ComponentSpec], dict[str, tuple[Rows, ...]]]]]
    families = {
        "UNet2DConditionModel": (unet.architecture, unet.tensors),
        "FluxTransformer2DModel": (lambda _: "flux", flux.tensors),
        "SD3Transformer2DModel": (lambda _: "sd3", sd3.tensors),
    }
    known = families.get(spec.class_name)
    architecture = known[0](spec) if known else spec.class_name.removesuffix("Transformer2DModel").lower()
    if keys == "diffusers" or (keys is None and known is None):
        return Layout(architecture, "diffusers", {name: (whole(spec, name),) for name in spec.tensors})
    if known is None:
        raise UserError(
            f"--keys original: the published names of a {spec.class_name} are not known, only those of "
            f"{', '.join(families)}; use --keys diffusers"
        )
    tensors = known[1](spec)
    used = {rows.tensor for pieces in tensors.values() for rows in pieces}
    unnamed = sorted(set(spec.tensors) - used)
    if unnamed:
        raise UserError(
            f"--keys original: the published layout has no name for {spec.name}'s {unnamed[0]}; use --keys diffusers"
        )
    return Layout(architecture, "original", tensors)


def whole(spec: ComponentSpec, tensor: str) -> Rows:
    """Return all rows of a tensor."""
    shape = spec.tensors[tensor].shape
    return Rows(tensor, 0, shape[0] if shape else 1)


def halves_swapped(spec: ComponentSpec, tensor: str) -> tuple[Rows, Rows]:
    """Return a tensor's rows with its halves exchanged: diffusers has scale before shift, published models after it."""
    rows = spec.tensors[tensor].shape[0]
    return Rows(tensor, rows // 2, rows), Rows(tensor, 0, rows // 2)


def rename_layers(
    spec: ComponentSpec, layers: Mapping[str, tuple[str, ...]], swapped: frozenset[str] = frozenset()
) -> dict[str, tuple[Rows, ...]]:
    """Return published tensor name -> rows, for the layers that the component has.

    Args: layers: published layer -> the layers of diffusers that it is made of. A name that ends in `.scale` is a
    weight's. swapped: published layers whose halves are exchanged.
    """
    tensors: dict[str, tuple[Rows, ...]] = {}
    for published, parts in layers.items():
        for leaf in ("weight", "bias"):
            names = [f"{part}.{leaf}" for part in parts]
            if not all(name in spec.tensors for name in names):
                continue
            target = published if published.endswith(".scale") else f"{published}.{leaf}"
            if published in swapped:
                tensors[target] = halves_swapped(spec, names[0])
            else:
                tensors[target] = tuple(whole(spec, name) for name in names)
    return tensors
