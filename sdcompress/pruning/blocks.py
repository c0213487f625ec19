"""Transformers without some of their blocks. The rest keeps its order, and stock loaders open the result.

A block is residual, so the rest computes what the whole does when those blocks pass their input on.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from sdcompress.errors import ProblemList
from sdcompress.families.architecture import BlockList
from sdcompress.families.registry import architecture_of
from sdcompress.pruning.smaller import Smaller, without
from sdcompress.sources.spec import ComponentSpec


def is_transformer(spec: ComponentSpec) -> bool:
    """Return whether the component is a denoiser from which whole blocks can be removed."""
    known = architecture_of(spec.class_name)
    return known.role == "denoiser" and bool(known.blocks)


def block_lists(spec: ComponentSpec) -> dict[BlockList, dict[str, list[str]]]:
    """Return list of blocks -> block -> its tensors, in the order of the blocks; nothing for an unknown class.

    Examples:
        >>> from sdcompress.sources.spec import ComponentSpec, parameter
        >>> names = ["proj_in.weight", "transformer_blocks.0.ff.weight", "transformer_blocks.1.ff.weight"]
        >>> tensors = {name: parameter((4, 4), "F16") for name in names}
        >>> spec = ComponentSpec("transformer", "diffusers", "SanaTransformer2DModel", {"num_layers": 2}, tensors)
        >>> {blocks.name: list(tensors) for blocks, tensors in block_lists(spec).items()}
        {'transformer_blocks': ['transformer_blocks.0', 'transformer_blocks.1']}
        >>> smaller = without_blocks(spec, {"transformer_blocks.0"})
        >>> smaller.spec.config, smaller.origins["transformer_blocks.0.ff.weight"]
        ({'num_layers': 1}, 'transformer_blocks.1.ff.weight')
    """
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
    """Return the blocks that cannot be removed."""
    return frozenset(list(tensors)[-1] for blocks, tensors in block_lists(spec).items() if blocks.last_stays)


def without_blocks(spec: ComponentSpec, gone: Collection[str]) -> Smaller:
    """Return the transformer without the blocks of these names.

    Raises:
        UserError: a block has to stay, or no block of a list would.
    """
    problems = ProblemList()
    config = dict(spec.config)
    removed: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for blocks, tensors in block_lists(spec).items():
        names = list(tensors)
        staying = [name for name in names if name not in gone]
        if not staying:
            problems.add("remove", f"takes in all {len(names)} {blocks.name} of {spec.name}; at least one must stay")
            continue
        if blocks.last_stays and names[-1] in gone:
            what = f"{names[-1]} is the last of {spec.name}'s blocks, which is built differently and must stay"
            problems.add("remove", f"{what}; leave it out of the patterns")
        removed |= {tensor: name for name in names if name in gone for tensor in tensors[name]}
        renamed |= {
            tensor: f"{blocks.name}.{place}{tensor.removeprefix(name)}"
            for place, name in enumerate(staying)
            for tensor in tensors[name]
        }
        if len(staying) < len(names):
            config[blocks.count] = len(staying)
            places = {int(name.rpartition(".")[2]): place for place, name in enumerate(staying)}
            for key in blocks.indexed:
                if config.get(key):
                    config[key] = [places[index] for index in config[key] if index in places]
    problems.raise_any()
    return without(spec, removed, config, renamed)
