"""The families of pipelines and the classes of components that `described/` describes."""

from __future__ import annotations

from functools import cache

from sdcompress.errors import InternalError
from sdcompress.families.architecture import Architecture, Family
from sdcompress.plugins import find_constants


@cache
def known_architectures() -> dict[str, Architecture]:
    """Return class of component -> its description, from every module of `sdcompress/families/described/`."""
    found: dict[str, Architecture] = {}
    for module, architectures in find_constants("sdcompress.families.described", "ARCHITECTURES").items():
        for one in architectures:
            if one.class_name in found:
                raise InternalError(f"{module}: {one.class_name} is described in another file already")
            found[one.class_name] = one
    return found


def architecture_of(class_name: str) -> Architecture:
    """Return what is known about components of that class: of an unknown one, an Architecture that knows nothing.

    Examples:
        >>> architecture_of("UNet2DConditionModel").role, architecture_of("MyOwnModel").role
        ('denoiser', 'unknown')
    """
    return known_architectures().get(class_name) or Architecture(class_name, "unknown")


@cache
def known_families() -> dict[str, Family]:
    """Return class of pipeline -> its family, from every module of `sdcompress/families/described/`."""
    found: dict[str, Family] = {}
    for module, family in find_constants("sdcompress.families.described", "FAMILY").items():
        for pipeline_class in family.pipelines:
            if pipeline_class in found:
                raise InternalError(f"{module}: {pipeline_class} is of another family already")
            found[pipeline_class] = family
    return found
