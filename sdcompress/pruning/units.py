"""The parts of a denoiser that can be left out one by one: what they add to is passed on without them.

A resnet gives its shortcut alone, which is nothing but its input where it keeps the number of channels; a transformer
(an `attentions.N`) and one of its `transformer_blocks` give their input. Shapes stay, so all else stays as it was.
Denoisers that are transformers lose whole blocks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sdcompress.errors import Problem, ProblemList
from sdcompress.pruning.blocks import block_lists, is_transformer
from sdcompress.pruning.smaller import Smaller, keep
from sdcompress.pruning.stock import is_unet
from sdcompress.sources.layer_patterns import first_match, unmatched
from sdcompress.sources.spec import ComponentSpec

_RESNET = re.compile(r"^((?:(?:down|up)_blocks\.\d+|mid_block)\.resnets\.\d+)\.")
_TRANSFORMER = re.compile(r"^((?:(?:down|up)_blocks\.\d+|mid_block)\.attentions\.\d+)\.")
_BLOCK = re.compile(r"^((?:(?:down|up)_blocks\.\d+|mid_block)\.attentions\.\d+\.transformer_blocks\.\d+)\.")


@dataclass(frozen=True)
class Unit:
    """A part that can be left out, and the tensors that go with it."""

    name: str
    tensors: tuple[str, ...]
    parameters: int


def removable_units(spec: ComponentSpec) -> tuple[Unit, ...]:
    """The component's removable units by name, in the order of its tensors; a UNet's transformers and their blocks
    both."""
    if is_transformer(spec):
        blocks = [item for tensors in block_lists(spec).values() for item in tensors.items()]
        return tuple(_unit(spec, name, names) for name, names in blocks)
    if not is_unet(spec):
        return ()
    tensors: dict[str, list[str]] = {}
    for name in spec.tensors:
        for pattern in (_RESNET, _TRANSFORMER, _BLOCK):
            match = pattern.match(name)
            if match is not None and not name.startswith(f"{match[1]}.conv_shortcut."):
                tensors.setdefault(match[1], []).append(name)
    transformers = {match[0].split(".transformer_blocks")[0] for name in tensors if (match := _BLOCK.match(f"{name}."))}
    return tuple(
        _unit(spec, name, names)
        for name, names in tensors.items()
        if ".attentions." not in name or name.split(".transformer_blocks")[0] in transformers
    )


def _unit(spec: ComponentSpec, name: str, tensors: Sequence[str]) -> Unit:
    return Unit(name, tuple(tensors), sum(spec.tensors[each].parameters for each in tensors))


def matching_units(spec: ComponentSpec, patterns: Sequence[str]) -> tuple[Unit, ...]:
    """Return the outermost units that the patterns match.

    Raises:
        UserError: a pattern matches none.
    """
    units = removable_units(spec)
    names = [unit.name for unit in units]
    problems = ProblemList(
        Problem("remove", f"{pattern!r} matches no removable part of {spec.name}; there are {_parts(spec, names)}")
        for pattern in unmatched(tuple(patterns), names)
    )
    problems.raise_any()
    return outermost([unit for unit in units if first_match(patterns, unit.name)])


def _parts(spec: ComponentSpec, names: Sequence[str]) -> str:
    if is_transformer(spec):
        return " and ".join(f"{len(blocks)} {each.name}" for each, blocks in block_lists(spec).items())
    return f"resnets, attentions and transformer_blocks, such as {names[0] if names else 'none here'}"


def outermost(units: Sequence[Unit]) -> tuple[Unit, ...]:
    """The units that do not lie in another of them."""
    names = {unit.name for unit in units}
    return tuple(unit for unit in units if unit.name.split(".transformer_blocks")[0] not in names - {unit.name})


def without_units(spec: ComponentSpec, units: Collection[Unit]) -> Smaller:
    """The UNet without the units' tensors; `marking` says what its config must tell."""
    modules = {tensor: unit.name for unit in units for tensor in unit.tensors}
    kept = {name: name for name in spec.tensors if name not in modules}
    return keep(spec, kept, spec.config, modules)


def is_whole_mid_block(spec: ComponentSpec, units: Collection[Unit]) -> bool:
    """Whether the units are all that the mid block consists of, so that a config without it says the same."""
    gone = {tensor for unit in units for tensor in unit.tensors}
    mid = [name for name in spec.tensors if name.startswith("mid_block.")]
    return bool(mid) and all(name in gone for name in mid)
