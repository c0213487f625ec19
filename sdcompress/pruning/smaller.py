"""A component with tensors left out, and where those that stay were before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcompress.sources.spec import ComponentSpec


@dataclass(frozen=True)
class Smaller:
    """`origins`: tensor -> its name before; `removed`: module that is gone -> its parameters."""

    spec: ComponentSpec
    origins: Mapping[str, str]
    removed: Mapping[str, int]

    def then(self, after: Smaller) -> Smaller:
        """Both, one after the other: `after` was made of this one's spec."""
        origins = {new: self.origins[old] for new, old in after.origins.items()}
        removed = dict(self.removed)
        for module, count in after.removed.items():
            removed[module] = removed.get(module, 0) + count
        return Smaller(after.spec, origins, removed)


def unchanged(spec: ComponentSpec) -> Smaller:
    """The component with all its tensors."""
    return Smaller(spec, {name: name for name in spec.tensors}, {})


def keep(
    spec: ComponentSpec, origins: Mapping[str, str], config: Mapping[str, Any], modules: Mapping[str, str]
) -> Smaller:
    """The component with the tensors of `origins`; `modules`: tensor that is left out -> the module it went with."""
    tensors = {new: spec.tensors[old] for new, old in origins.items()}
    removed: dict[str, int] = {}
    for name, module in modules.items():
        removed[module] = removed.get(module, 0) + spec.tensors[name].parameters
    return Smaller(spec.replace(config=config, tensors=tensors), dict(origins), removed)
