"""Components without whole parts, as far as a stock config can express it, so that stock loaders open the result.

UNets: BK-SDM (Kim et al. 2023, arXiv:2305.15798, section 3.1). Down blocks keep their first layers; up blocks keep
their first and their last, whose input widths are those of a shallower UNet. Its tiny pattern also removes the
innermost stage. KOALA (Lee et al. 2024, arXiv:2312.04005) makes SDXL's transformers shallower.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdcompress.errors import Problem, UserError
from sdcompress.families.described.clip import TEXT_ENCODERS
from sdcompress.pruning.smaller import Smaller, without
from sdcompress.sources.spec import ComponentSpec

_LAYER = re.compile(r"^((down|up)_blocks)\.(\d+)\.((resnets|attentions)\.(\d+))\.(.+)$")
_TRANSFORMER_BLOCK = re.compile(r"^(.+\.transformer_blocks)\.(\d+)\..+$")
_TEXT_LAYER = re.compile(r"^(.*encoder\.layers\.(\d+))\.")
# Config entries that may be lists with a value for each stage, outermost first.
_PER_STAGE = (
    "block_out_channels", "down_block_types", "layers_per_block", "attention_head_dim", "num_attention_heads",
    "cross_attention_dim", "transformer_layers_per_block", "only_cross_attention",
)  # fmt: skip


def is_unet(spec: ComponentSpec) -> bool:
    """Return whether the component is a UNet whose parts are known here."""
    return spec.class_name == "UNet2DConditionModel"


def is_text_encoder(spec: ComponentSpec) -> bool:
    """Return whether the component is a CLIP text encoder."""
    return spec.class_name in TEXT_ENCODERS


def without_mid_block(spec: ComponentSpec) -> Smaller:
    """Return the UNet without its mid block.

    Raises:
        UserError: it has none.

    Examples:
        >>> from sdcompress.sources.spec import ComponentSpec, parameter
        >>> tensors = {name: parameter((4, 4), "F16") for name in ("conv_in.weight", "mid_block.x.weight")}
        >>> smaller = without_mid_block(ComponentSpec("unet", "diffusers", "UNet2DConditionModel", {}, tensors))
        >>> list(smaller.spec.tensors), smaller.spec.config, smaller.removed
        (['conv_in.weight'], {'mid_block_type': None}, {'mid_block': 16})
    """
    removed = {name: "mid_block" for name in spec.tensors if name.startswith("mid_block.")}
    if not removed:
        raise UserError(Problem("drop_mid_block", f"{spec.name} has no mid block"))
    return without(spec, removed, {**spec.config, "mid_block_type": None})


def with_layers_per_block(spec: ComponentSpec, layers: int) -> Smaller:
    """Return the UNet with that many layers in each down block, and one more in each up block.

    A layer is a resnet, with an attention where there are any.

    Raises:
        UserError: the model does not have more layers, or not the same number in all blocks.
    """
    before = spec.config.get("layers_per_block", 2)
    if not isinstance(before, int) or layers >= before:
        raise UserError(Problem("layers_per_block", f"{layers} is not less than the model's {before}"))
    removed, renamed = {}, {}
    for name in spec.tensors:
        if match := _LAYER.match(name):
            blocks, side, block, module, part, index, rest = match.groups()
            new = _new_index(int(index), side, before, layers)
            if new is None:
                removed[name] = f"{blocks}.{block}.{module}"
            else:
                renamed[name] = f"{blocks}.{block}.{part}.{new}.{rest}"
    return without(spec, removed, {**spec.config, "layers_per_block": layers}, renamed)


def _new_index(index: int, side: str, before: int, after: int) -> int | None:
    """Return the layer's index in a block of `after` layers (an up block has one more), None if it is removed."""
    if side == "up" and index == before:
        return after  # the last layer of an up block takes the narrower skip connection
    return index if index < after else None


def without_innermost_stage(spec: ComponentSpec) -> Smaller:
    """Return the UNet without its last down block and its first up block, which halves the size once less.

    Raises:
        UserError: the stage before has other widths or settings, so that the rest does not fit together.
    """
    config = dict(spec.config)
    widths = config["block_out_channels"]
    last = len(widths) - 1
    if last < 1 or widths[-1] != widths[-2]:
        what = f"the stages of {spec.name} are {', '.join(map(str, widths))} channels wide"
        raise UserError(
            Problem("drop_innermost_stage", f"{what}; the last two must be alike for the rest to fit together")
        )
    for key in _PER_STAGE:
        value = config.get(key)
        if isinstance(value, list | tuple):
            if key not in ("down_block_types", "block_out_channels") and value[-1] != value[-2]:
                raise UserError(Problem("drop_innermost_stage", f"{key} {list(value)} must end with two equal entries"))
            config[key] = list(value[:-1])
    if config.get("reverse_transformer_layers_per_block"):
        raise UserError(Problem("drop_innermost_stage", "does not work with reverse_transformer_layers_per_block"))
    config["up_block_types"] = list(config["up_block_types"][1:])
    gone = (f"down_blocks.{last}", "up_blocks.0", f"down_blocks.{last - 1}.downsamplers")
    removed, renamed = {}, {}
    for name in spec.tensors:
        module = next((module for module in gone if name.startswith(f"{module}.")), None)
        if module is not None:
            removed[name] = module
        elif name.startswith("up_blocks."):
            _, block, rest = name.split(".", 2)
            renamed[name] = f"up_blocks.{int(block) - 1}.{rest}"
    return without(spec, removed, config, renamed)


def with_transformer_depth(spec: ComponentSpec, depth: int) -> Smaller:
    """Return the UNet with at most that many transformer blocks in each attention: the first ones.

    Raises:
        UserError: no attention has more.
    """
    before = spec.config.get("transformer_layers_per_block", 1)
    deepest = before if isinstance(before, int) else max(_flat(before))
    if depth >= deepest:
        raise UserError(Problem("transformer_depth", f"{depth} is not less than the model's {before}"))
    matches = {name: match for name in spec.tensors if (match := _TRANSFORMER_BLOCK.match(name))}
    removed = {name: f"{match[1]}.{match[2]}" for name, match in matches.items() if int(match[2]) >= depth}
    config = dict(spec.config)
    for key in ("transformer_layers_per_block", "reverse_transformer_layers_per_block"):
        if config.get(key) is not None:
            config[key] = _at_most(config[key], depth)
    return without(spec, removed, config)


def _flat(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else [each for item in value for each in _flat(item)]


def _at_most(value: Any, limit: int) -> Any:
    return min(value, limit) if isinstance(value, int) else [_at_most(each, limit) for each in value]


def with_text_layers(spec: ComponentSpec, layers: int) -> Smaller:
    """Return the text encoder with its first `layers` layers and its final norm, as "clip skip" does it.

    Pipelines that read the state before the last layer (SDXL) then read that of layer `layers - 1`.

    Raises:
        UserError: it does not have more layers.
    """
    matches = {name: match for name in spec.tensors if (match := _TEXT_LAYER.match(name))}
    before = 1 + max(int(match[2]) for match in matches.values())
    if layers >= before:
        raise UserError(Problem("text_layers", f"{layers} is not less than the {before} of {spec.name}"))
    removed = {name: match[1] for name, match in matches.items() if int(match[2]) >= layers}
    return without(spec, removed, text_config_with(spec, "num_hidden_layers", layers))


def text_config_with(spec: ComponentSpec, key: str, value: int) -> Mapping[str, Any]:
    """Return the text encoder's config with another value for `key`, nested or not."""
    if isinstance(spec.config.get("text_config"), Mapping):
        return {**spec.config, "text_config": {**spec.config["text_config"], key: value}}
    return {**spec.config, key: value}
