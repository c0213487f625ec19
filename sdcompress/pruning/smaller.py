"""A component with tensors removed, and the names that the remaining tensors had before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcompress.sources.spec import ComponentSpec


@dataclass(frozen=True)
class Smaller:
    """A component with tensors removed.

    Args:
        spec: the component afterwards.
        origins: tensor -> its name before.
        removed: module that is gone -> its parameters.
    """

    spec: ComponentSpec
    origins: Mapping[str, str]
    removed: Mapping[str, int]

    def then(self, after: Smaller) -> Smaller:
        """Return both removals as one; `after` was made from this one's spec."""
        origins = {new: self.origins[old] for new, old in after.origins.items()}
        removed = dict(self.removed)
        for module, count in after.removed.items():
            removed[module] = removed.get(module, 0) + count
        return Smaller(after.spec, origins, removed)


def unchanged(spec: ComponentSpec) -> Smaller:
    """Return the component with all its tensors."""
    return without(spec, {})


def without(
    spec: ComponentSpec,
    removed: Mapping[str, str],
    config: Mapping[str, Any] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Smaller:
    """Return the component without some tensors.

    Args:
        spec: the component.
        removed: tensor to remove -> the module that it belongs to.
        config: of the component afterwards; None: the same.
        renamed: tensor -> its new name; the others keep theirs.

    Examples:
        >>> from sdcompress.sources.spec import ComponentSpec, parameter
        >>> tensors = {name: parameter((4, 4), "F16") for name in ("a.weight", "b.weight")}
        >>> smaller = without(ComponentSpec("unet", "diffusers", "X", {}, tensors), {"a.weight": "a"})
        >>> list(smaller.spec.tensors), smaller.removed
        (['b.weight'], {'a': 16})
    """
    new_names = renamed or {}
    origins = {new_names.get(name, name): name for name in spec.tensors if name not in removed}
    parameters: dict[str, int] = {}
    for name, module in removed.items():
        parameters[module] = parameters.get(module, 0) + spec.tensors[name].parameters
    tensors = {new: spec.tensors[old] for new, old in origins.items()}
    after = spec.replace(tensors=tensors) if config is None else spec.replace(tensors=tensors, config=config)
    return Smaller(after, origins, parameters)
