"""Transformers with whole blocks left out: those that stay close ranks, and stock loaders open what comes of it.

A block adds to what it gets, so the rest computes what the whole does with those blocks passing on their input.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from sdcompress.errors import ProblemList
from sdcompress.families.architecture import BlockList
from sdcompress.families.registry import architecture_of
from sdcompress.pruning.smaller import Smaller, keep
from sdcompress.sources.spec import ComponentSpec


def is_transformer(spec: ComponentSpec) -> bool:
    """Whether the component is a denoiser of which whole blocks can be left out."""
    known = architecture_of(spec.class_name)
    return known.role == "denoiser" and bool(known.blocks)


def block_lists(spec: ComponentSpec) -> dict[BlockList, dict[str, list[str]]]:
    """List of blocks -> block -> its tensors, in the order of the blocks; nothing where no list is known."""
    found: dict[BlockList, dict[str, list[str]]] = {}
    for blocks in architecture_of(spec.class_name).blocks:
        place = re.compile(rf"^{re.escape(blocks.name)}\.(\d+)\.")
        tensors: dict[int, list[str]] = {}
        for name in spec.tensors:
            if match := place.match(name):
                tensors.setdefault(int(match[1]), []).append(name)
        found[blocks] = {f"{blocks.name}.{index}": tensors[index] for index in sorted(tensors)}
    return found


def must_stay(spec: ComponentSpec) -> frozenset[str]:
    """The blocks that cannot be left out."""
    return frozenset(list(tensors)[-1] for blocks, tensors in block_lists(spec).items() if blocks.last_stays)


def without_blocks(spec: ComponentSpec, gone: Collection[str]) -> Smaller:
    """The transformer without those blocks. UserError where one has to stay, or nothing of a list would."""
    problems = ProblemList()
    config = dict(spec.config)
    modules: dict[str, str] = {}
    new_names: dict[str, str] = {}
    for blocks, tensors in block_lists(spec).items():
        names = list(tensors)
        staying = [name for name in names if name not in gone]
        if not staying:
            problems.add("remove", f"takes in all {len(names)} {blocks.name} of {spec.name}; at least one must stay")
            continue
        if blocks.last_stays and names[-1] in gone:
            what = f"{names[-1]} is the last of {spec.name}'s blocks, which is built differently and must stay"
            problems.add("remove", f"{what}; leave it out of the patterns")
        modules |= {tensor: name for name in names if name in gone for tensor in tensors[name]}
        new_names |= {
            tensor: f"{blocks.name}.{place}{tensor.removeprefix(name)}"
            for place, name in enumerate(staying)
            for tensor in tensors[name]
        }
        if len(staying) < len(names):
            config[blocks.count] = len(staying)
            places = {int(name.rpartition(".")[2]): place for place, name in enumerate(staying)}
            config |= {key: _moved(config[key], places) for key in blocks.indexed if config.get(key)}
    problems.raise_any()
    kept = {new_names.get(tensor, tensor): tensor for tensor in spec.tensors if tensor not in modules}
    return keep(spec, kept, config, modules)


def _moved(indices: Collection[int], places: Mapping[int, int]) -> list[Any]:
    """The places that are left of a list of blocks' places, as they are now."""
    return [places[index] for index in indices if index in places]
