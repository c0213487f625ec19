"""The parts of a denoiser that can be removed one by one: the rest computes without what they add.

Without a resnet its shortcut remains, which is its input where the number of channels stays the same. Without a
transformer (an `attentions.N`), or one of its `transformer_blocks`, its input remains. Shapes do not change, so
everything else stays as it is. Denoisers that are transformers lose whole blocks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sdcompress.errors import Problem, ProblemList
from sdcompress.pruning.blocks import block_lists, is_transformer
from sdcompress.pruning.smaller import Smaller, without
from sdcompress.pruning.stock import is_unet
from sdcompress.sources.layer_patterns import first_match, unmatched
from sdcompress.sources.spec import ComponentSpec

_STAGE = r"(?:(?:down|up)_blocks\.\d+|mid_block)"
_RESNET = re.compile(rf"^({_STAGE}\.resnets\.\d+)\.")
_TRANSFORMER = re.compile(rf"^({_STAGE}\.attentions\.\d+)\.")
_BLOCK = re.compile(rf"^({_STAGE}\.attentions\.\d+\.transformer_blocks\.\d+)\.")


@dataclass(frozen=True)
class Unit:
    """A part that can be removed, and its tensors."""

    name: str
    tensors: tuple[str, ...]
    parameters: int


def removable_units(spec: ComponentSpec) -> tuple[Unit, ...]:
    """Return the component's removable units, in the order of its tensors.

    Of a UNet these include both transformers and the blocks inside them.

    Examples:
        >>> from sdcompress.sources.spec import ComponentSpec, parameter
        >>> names = ["conv_in.weight", "mid_block.resnets.0.conv1.weight", "mid_block.resnets.1.conv1.weight"]
        >>> tensors = {name: parameter((4, 4), "F16") for name in names}
        >>> spec = ComponentSpec("unet", "diffusers", "UNet2DConditionModel", {}, tensors)
        >>> [(unit.name, unit.parameters) for unit in removable_units(spec)]
        [('mid_block.resnets.0', 16), ('mid_block.resnets.1', 16)]
    """
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
    """Return the units that do not lie in another of them."""
    names = {unit.name for unit in units}
    return tuple(unit for unit in units if unit.name.split(".transformer_blocks")[0] not in names - {unit.name})


def without_units(spec: ComponentSpec, units: Collection[Unit]) -> Smaller:
    """Return the UNet without the units' tensors; its config does not tell (see `sources.pruned_config.marked`)."""
    return without(spec, {tensor: unit.name for unit in units for tensor in unit.tensors})


def is_whole_mid_block(spec: ComponentSpec, units: Collection[Unit]) -> bool:
    """Return whether the units are the whole mid block, so that a stock config can express the same."""
    gone = {tensor for unit in units for tensor in unit.tensors}
    mid = [name for name in spec.tensors if name.startswith("mid_block.")]
    return bool(mid) and all(name in gone for name in mid)
