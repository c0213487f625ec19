"""Find the plug-ins of a package: the classes and constants that its modules hold."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any, TypeVar

from sdcompress.errors import InternalError

T = TypeVar("T")


def find_classes(package: str, kind: type[T], attribute: str) -> dict[str, type[T]]:
    """Return each subclass of `kind` in the package's modules, by the name that its class attribute gives.

    Args:
        package: dotted name of the package; its modules are imported, those of its subpackages are not.
        kind: the class that plug-ins derive from.
        attribute: the class attribute with the plug-in's name. A class without one of its own is skipped.

    Raises:
        InternalError: two classes have the same name.
    """
    found: dict[str, type[T]] = {}
    for module in modules_of(package):
        for _, item in inspect.getmembers(module, inspect.isclass):
            name = item.__dict__.get(attribute)
            if not issubclass(item, kind) or item.__module__ != module.__name__ or not isinstance(name, str):
                continue
            if name in found:
                raise InternalError(f"{module.__name__}.{item.__name__}: {found[name].__name__} is {name} already")
            found[name] = item
    return found


def find_constants(package: str, constant: str) -> dict[str, Any]:
    """Return module name -> value of the constant, for the package's modules that define it."""
    modules = modules_of(package)
    return {module.__name__: getattr(module, constant) for module in modules if hasattr(module, constant)}


def modules_of(package: str) -> list[ModuleType]:
    """Return the imported modules of a package, sorted by name."""
    names = sorted(info.name for info in pkgutil.iter_modules(importlib.import_module(package).__path__))
    return [importlib.import_module(f"{package}.{name}") for name in names]
