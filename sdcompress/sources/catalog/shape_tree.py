"""Tensor shapes as a tree by module path, in which repetitions are written once.

- A leaf is a shape. `"weight+bias": [4, 2]` is a weight of that shape and a bias of its first axis.
- `"0-11": {...}` is the same subtree for the numbers 0 to 11, both included.
- `"=down_blocks/1/resnets"` is a reference to the subtree at that path of keys.

`benchmarks/shape_tree_writer.py` writes such trees.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Tree = dict[str, Any]  # str -> Tree | shape as a list | "=path"

_RUN = re.compile(r"(\d+)-(\d+)")
BOTH = "weight+bias"


def expand(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return tensor -> shape, in the order of the tree.

    Examples:
        >>> expand({"layers": {"0-1": {"fc": {"weight": [4, 2]}}}})
        {'layers.0.fc.weight': (4, 2), 'layers.1.fc.weight': (4, 2)}
    """
    return dict(_walk(tree, "", tree))


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Tree:
    """Return `base` with the values of `changes`, nested mappings key by key.

    Examples:
        >>> overlay({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
        {'a': {'x': 1, 'y': 3}}
    """
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _walk(tree: Mapping[str, Any], prefix: str, root: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for key, value in tree.items():
        if isinstance(value, str):
            value = _resolve(root, value)
        run = _RUN.fullmatch(key)
        for name in range(int(run[1]), int(run[2]) + 1) if run else [key]:
            if isinstance(value, Mapping):
                yield from _walk(value, f"{prefix}{name}.", root)
            elif key == BOTH:
                yield f"{prefix}weight", tuple(value)
                yield f"{prefix}bias", tuple(value[:1])
            else:
                yield f"{prefix}{name}", tuple(value)


def _resolve(root: Mapping[str, Any], reference: str) -> Any:
    node: Any = root
    for key in reference[1:].split("/"):
        node = node[key]
    return node
