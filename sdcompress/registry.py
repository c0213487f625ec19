"""Finds the steps, formats, ways of rounding and families: what the files of a package hold, under its own name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sdcompress.errors import InternalError

if TYPE_CHECKING:
    from sdcompress.families.architecture import Architecture, Family
    from sdcompress.quant.format import QuantFormat
    from sdcompress.quant.rounding import Rounding
    from sdcompress.planning.steps import Step


@cache
def steps() -> dict[str, type[Step]]:
    """Step kind -> class, for every file of `sdcompress/planning/steps/`."""
    from sdcompress.planning.steps import Step

    return _find("sdcompress.planning.steps", Step, "kind")


@cache
def formats() -> dict[str, type[QuantFormat]]:
    """Format name -> class, for every file of `sdcompress/quant/`."""
    from sdcompress.quant.format import QuantFormat

    return _find("sdcompress.quant", QuantFormat, "name")


@cache
def roundings() -> dict[str, type[Rounding]]:
    """Name -> class of the ways of choosing codes, for every file of `sdcompress/quant/rounding/`."""
    from sdcompress.quant.rounding import Rounding

    return _find("sdcompress.quant.rounding", Rounding, "name")


@cache
def architectures() -> dict[str, Architecture]:
    """Class of component -> what is known about it, from every file of `sdcompress/components/families/`."""
    found: dict[str, Architecture] = {}
    for module in _modules("sdcompress.components.families"):
        for one in getattr(module, "ARCHITECTURES", ()):
            if one.class_name in found:
                raise InternalError(f"{module.__name__}: {one.class_name} is described in another file already")
            found[one.class_name] = one
    return found


@cache
def families() -> dict[str, Family]:
    """Class of pipeline -> its family, from every file of `sdcompress/components/families/`."""
    found: dict[str, Family] = {}
    for module in _modules("sdcompress.components.families"):
        family: Family | None = getattr(module, "FAMILY", None)
        for pipeline_class in family.pipelines if family else ():
            assert family is not None
            if pipeline_class in found:
                raise InternalError(f"{module.__name__}: {pipeline_class} is of another family already")
            found[pipeline_class] = family
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean int8? ` and the list of what is known, for an error message."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}known: {', '.join(names)}"


def _find(package_name: str, kind: type[Any], attribute: str) -> dict[str, type[Any]]:
    found: dict[str, type[Any]] = {}
    for module in _modules(package_name):
        for _, item in inspect.getmembers(module, inspect.isclass):
            name = item.__dict__.get(attribute)
            if not issubclass(item, kind) or item.__module__ != module.__name__ or not isinstance(name, str):
                continue
            if name in found:
                raise InternalError(f"{module.__name__}.{item.__name__}: {found[name].__name__} is {name} already")
            found[name] = item
    return found


def _modules(package_name: str) -> list[ModuleType]:
    """The modules of a package, by name."""
    package = importlib.import_module(package_name)
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package_name}.{name}") for name in names]
