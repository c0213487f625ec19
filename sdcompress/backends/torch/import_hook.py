"""Running a function after another package's module was imported, without importing the module here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(module: str, action: Callable[[], None]) -> None:
    """Run `action` now if `module` is imported, else right after its import."""
    if module in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _ModuleFinder(module, action))


class _ModuleFinder(MetaPathFinder):
    """Finds one module as the other finders do, and gives it a loader that runs the action."""

    def __init__(self, module: str, action: Callable[[], None]):
        self.module, self.action = module, action

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _ActionLoader(spec.loader, self.action)
        return spec


class _ActionLoader(Loader):
    def __init__(self, loader: Loader, action: Callable[[], None]):
        self.loader, self.action = loader, action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.action()
