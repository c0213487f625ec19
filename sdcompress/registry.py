"""Finds the steps, formats and ways of rounding: every class with a name of its own in the files of a package."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from sdcompress.errors import InternalError

if TYPE_CHECKING:
    from sdcompress.quant.format import QuantFormat
    from sdcompress.quant.rounding import Rounding
    from sdcompress.steps import Step


@cache
def steps() -> dict[str, type[Step]]:
    """Step kind -> class, for every file of `sdcompress/steps/`."""
    from sdcompress.steps import Step

    return _find("sdcompress.steps", Step, "kind")


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


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean int8? ` and the list of what is known, for an error message."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}known: {', '.join(names)}"


def _find(package_name: str, kind: type[Any], attribute: str) -> dict[str, type[Any]]:
    found: dict[str, type[Any]] = {}
    package = importlib.import_module(package_name)
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package_name}.{info.name}")
        for _, item in inspect.getmembers(module, inspect.isclass):
            name = item.__dict__.get(attribute)
            if not issubclass(item, kind) or item.__module__ != module.__name__ or not isinstance(name, str):
                continue
            if name in found:
                raise InternalError(f"{module.__name__}.{item.__name__}: {found[name].__name__} is {name} already")
            found[name] = item
    return found
