"""Tensor shapes as a compact tree: nested by module path, with what repeats written once.

- A leaf is a shape; `"weight+bias": [4, 2]` stands for a weight of that shape and a bias of its first axis.
- `"0-11": {...}` stands for the numbered siblings 0 to 11, both included.
- `"=down_blocks/1/resnets"` in place of a subtree stands for the subtree at that path of keys.

`{"layers": {"0-11": {"fc": {"weight+bias": [4, 2]}}}}` so stands for the 24 tensors `layers.0.fc.weight` [4, 2],
`layers.0.fc.bias` [4], ... `layers.11.fc.bias`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

Tree = dict[str, Any]  # str -> Tree | shape as a list | "=path"

_RUN = re.compile(r"(\d+)-(\d+)")
_BOTH = "weight+bias"
_SHORTEST_REFERENCED = 48  # characters of JSON below which a reference would hide more than it saves


def expand(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, in the tree's order."""
    return dict(_walk(tree, "", tree))


def compact(shapes: Mapping[str, tuple[int, ...]]) -> Tree:
    """The tree that `expand` turns back into `shapes`."""
    root: Tree = {}
    for name, shape in shapes.items():
        *modules, leaf = name.split(".")
        node = root
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = list(shape)
    root = _merge_runs(root)
    _refer(root, (), {})
    return root


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Tree:
    """`base` with `changes` laid over it, nested mappings key by key."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def difference(base: Mapping[str, Any], wanted: Mapping[str, Any]) -> Tree:
    """The changes that `overlay` needs to turn `base` into `wanted`. ValueError if something had to be taken away."""
    gone = [key for key in base if key not in wanted]
    if gone:
        raise ValueError(f"an overlay cannot take away {gone}")
    changes: Tree = {}
    for key, value in wanted.items():
        old = base.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            inner = difference(old, value)
            if inner:
                changes[key] = inner
        elif key not in base or old != value:
            changes[key] = value
    return changes


def _walk(tree: Mapping[str, Any], prefix: str, root: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for key, value in tree.items():
        if isinstance(value, str):
            value = _resolve(root, value)
        run = _RUN.fullmatch(key)
        for name in range(int(run[1]), int(run[2]) + 1) if run else [key]:
            if isinstance(value, Mapping):
                yield from _walk(value, f"{prefix}{name}.", root)
            elif key == _BOTH:
                yield f"{prefix}weight", tuple(value)
                yield f"{prefix}bias", tuple(value[:1])
            else:
                yield f"{prefix}{name}", tuple(value)


def _resolve(root: Mapping[str, Any], reference: str) -> Any:
    node: Any = root
    for key in reference[1:].split("/"):
        node = node[key]
    return node


def _merge_runs(tree: Tree) -> Tree:
    if set(tree) == {"weight", "bias"} and tree["bias"] == tree["weight"][:1]:
        return {_BOTH: tree["weight"]}
    merged: Tree = {}
    run: list[int] = []
    shared: Any = None
    for key, value in tree.items():
        if isinstance(value, dict):
            value = _merge_runs(value)
        if run and key == str(run[-1] + 1) and value == shared:
            del merged[_run_key(run)]
            run.append(int(key))
            merged[_run_key(run)] = value
        else:
            run, shared = ([int(key)], value) if key.isdecimal() else ([], None)
            merged[key] = value
    return merged


def _run_key(run: list[int]) -> str:
    return f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0])


def _refer(tree: Tree, path: tuple[str, ...], seen: dict[str, str]) -> None:
    """Replaces, in place, each subtree that stood earlier in the tree by a reference to that place."""
    for key, value in tree.items():
        if not isinstance(value, dict):
            continue
        here = (*path, key)
        text = json.dumps(value)
        if text in seen and len(text) >= _SHORTEST_REFERENCED:
            tree[key] = seen[text]
        else:
            seen[text] = "=" + "/".join(here)
            _refer(value, here, seen)
