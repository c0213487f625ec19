"""Writing the tensor shapes and configs of the catalog's files compactly: the opposite of catalog.shape_tree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sdcompress.sources.catalog.shape_tree import BOTH, Tree

_SHORTEST_REFERENCED = 48  # characters of JSON below which a reference would hide more than it saves


def compact(shapes: Mapping[str, tuple[int, ...]]) -> Tree:
    """Return the tree that `expand` turns back into `shapes`."""
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


def difference(base: Mapping[str, Any], wanted: Mapping[str, Any]) -> Tree:
    """Return the changes by which `overlay` turns `base` into `wanted`. Raises ValueError if `wanted` lacks a key."""
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


def _merge_runs(tree: Tree) -> Tree:
    if set(tree) == {"weight", "bias"} and tree["bias"] == tree["weight"][:1]:
        return {BOTH: tree["weight"]}
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
    """Replace, in place, each subtree that is in the tree before by a reference to that place."""
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
