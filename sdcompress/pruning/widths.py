"""Widths that can be reduced inside a component, and all tensors that have to be cut together for each.

These are the heads of an attention, the inner width of a feed-forward, and the channels between a resnet's two
convolutions. Inputs and outputs of these modules keep their shapes, so groups of dependent layers do not extend any
further (DepGraph, arXiv:2301.12900, finds the same groups where the residual stream is kept).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdcompress.errors import Problem, ProblemList, UserError
from sdcompress.pruning.stock import is_text_encoder, is_unet, text_config_with
from sdcompress.sources.spec import ComponentSpec, TensorSpec

_RESNET = re.compile(r"^((?:(?:down|up)_blocks\.\d+|mid_block)\.resnets\.\d+)\.conv1\.weight$")
_ATTENTION = re.compile(r"^((?:(down|up)_blocks\.(\d+)|mid_block)\.attentions\..+\.attn[12])\.to_q\.weight$")
_FEED_FORWARD = re.compile(r"^(.+\.transformer_blocks\.\d+\.ff)\.net\.2\.weight$")
_TEXT_MLP = re.compile(r"^(.*encoder\.layers\.\d+\.mlp)\.fc2\.weight$")
# The kept width of a feed-forward is a multiple of it, if the width before is; for vector units and groups of 32.
_FEED_FORWARD_UNIT = 32


@dataclass(frozen=True)
class Cut:
    """An axis of a tensor along which a group's heads or channels lie.

    Args:
        tensor: its name.
        axis: the axis.
        repeats: how often all of them follow one another along the axis; 2 in a gated feed-forward.
        size: entries of each along the axis.
    """

    tensor: str
    axis: int
    repeats: int = 1
    size: int = 1


@dataclass(frozen=True)
class Group:
    """Heads or channels of one module, some of which stay.

    Args:
        module: name of the module.
        kind: heads, feed_forward or resnet_channels.
        width: their number.
        kept: how many stay.
        cuts: all axes along which they lie.
        consumer: the layer that reads them, along axis 1 of its weight.
        partitions: equal parts, such as a norm's groups, of each of which equally many stay.
    """

    module: str
    kind: str
    width: int
    kept: int
    cuts: tuple[Cut, ...]
    consumer: str
    partitions: int = 1


def width_groups(
    spec: ComponentSpec, heads: float | None, feed_forward: float | None, resnet_channels: float | None
) -> tuple[Group, ...]:
    """Return the groups that become narrower when these shares of the widths are kept.

    Args:
        spec: a UNet, or for `feed_forward` a CLIP text encoder.
        heads: share of each attention's heads, 0 to 1; None: all. At least one stays.
        feed_forward: share of each feed-forward's inner width.
        resnet_channels: share of the channels between a resnet's convolutions.

    Raises:
        UserError: a share does not apply to the component, or changes nothing.

    Examples:
        >>> from sdcompress.sources.spec import ComponentSpec, parameter
        >>> shapes = {"fc1.weight": (64, 16), "fc1.bias": (64,), "fc2.weight": (16, 64)}
        >>> tensors = {f"encoder.layers.0.mlp.{name}": parameter(shape, "F16") for name, shape in shapes.items()}
        >>> spec = ComponentSpec("text_encoder", "transformers", "CLIPTextModel", {}, tensors)
        >>> groups = width_groups(spec, None, 0.5, None)
        >>> [tensor.shape for tensor in narrowed(spec, groups).tensors.values()]
        [(32, 16), (32,), (16, 32)]
    """
    problems = ProblemList()
    groups: list[Group] = []
    for field, share, find in (
        ("heads", heads, _attentions),
        ("feed_forward", feed_forward, _feed_forwards),
        ("resnet_channels", resnet_channels, _resnets),
    ):
        if share is None:
            continue
        with problems.collect():
            found = list(find(spec, share))
            changed = [group for group in found if group.kept < group.width]
            if not changed:
                widest = f"; the widest has {max(group.width for group in found)}" if found else ""
                problems.add(field, f"nothing in {spec.name} gets narrower by keeping {share:g} of it{widest}")
            groups += changed
    problems.raise_any()
    return tuple(groups)


def narrowed(spec: ComponentSpec, groups: Sequence[Group]) -> ComponentSpec:
    """Return the component with the groups' tensors cut; a text encoder's config tells the new width."""
    tensors = dict(spec.tensors)
    for group in groups:
        for cut in group.cuts:
            before = tensors[cut.tensor]
            shape = list(before.shape)
            shape[cut.axis] = cut.repeats * group.kept * cut.size
            lost = before.parameters * (before.shape[cut.axis] - shape[cut.axis]) // before.shape[cut.axis]
            tensors[cut.tensor] = TensorSpec(tuple(shape), before.dtype, before.parameters - lost)
    config = spec.config
    if groups and is_text_encoder(spec):
        config = text_config_with(spec, "intermediate_size", groups[0].kept)
    return spec.replace(tensors=tensors, config=config)


def _resnets(spec: ComponentSpec, share: float) -> Iterator[Group]:
    if not is_unet(spec):
        raise UserError(
            Problem("resnet_channels", f"{spec.name} is a {spec.class_name}; only a UNet2DConditionModel has them")
        )
    norm_groups = spec.config.get("norm_num_groups", 32)
    repeats = 2 if spec.config.get("resnet_time_scale_shift") == "scale_shift" else 1
    for name in spec.tensors:
        if match := _RESNET.match(name):
            module, width = match[1], spec.tensors[name].shape[0]
            kept = norm_groups * max(1, round(share * width / norm_groups))
            cuts = (
                *_existing(spec, module, "conv1", "norm2"),
                *_existing(spec, module, "time_emb_proj", repeats=repeats),
                Cut(f"{module}.conv2.weight", 1),
            )
            yield Group(module, "resnet_channels", width, kept, cuts, f"{module}.conv2", norm_groups)


def _attentions(spec: ComponentSpec, share: float) -> Iterator[Group]:
    if not is_unet(spec) or spec.config.get("dual_cross_attention"):
        what = f"those of {spec.name} ({spec.class_name}) cannot be removed; only a UNet2DConditionModel's can"
        raise UserError(Problem("heads", what))
    for name in spec.tensors:
        if match := _ATTENTION.match(name):
            module, width = match[1], _heads(spec.config, match[2], int(match[3] or 0))
            size = spec.tensors[name].shape[0] // width
            cuts = (*_existing(spec, module, "to_q", "to_k", "to_v", size=size),
                    Cut(f"{module}.to_out.0.weight", 1, size=size))  # fmt: skip
            yield Group(module, "heads", width, max(1, round(share * width)), cuts, f"{module}.to_out.0")


def _heads(config: Mapping[str, Any], side: str | None, block: int) -> int:
    """Return the heads of a block's attentions; in diffusers' UNet `attention_head_dim` is their number."""
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    if isinstance(heads, int):
        return heads
    if side == "up":
        return int(heads[len(heads) - 1 - block])
    return int(heads[block if side == "down" else -1])


def _feed_forwards(spec: ComponentSpec, share: float) -> Iterator[Group]:
    if not is_unet(spec) and not is_text_encoder(spec):
        what = f"that of {spec.name} ({spec.class_name}) cannot be made narrower"
        raise UserError(Problem("feed_forward", f"{what}; only a UNet2DConditionModel's and a CLIP text encoder's can"))
    pattern, first, second = (_FEED_FORWARD, "net.0.proj", "net.2") if is_unet(spec) else (_TEXT_MLP, "fc1", "fc2")
    for name in spec.tensors:
        if match := pattern.match(name):
            module, width = match[1], spec.tensors[name].shape[1]
            unit = next(unit for unit in (_FEED_FORWARD_UNIT, 16, 8, 4, 2, 1) if width % unit == 0)
            kept = unit * max(1, round(share * width / unit))
            repeats = spec.tensors[f"{module}.{first}.weight"].shape[0] // width  # 2 where it is gated
            cuts = (*_existing(spec, module, first, repeats=repeats), Cut(f"{module}.{second}.weight", 1))
            yield Group(module, "feed_forward", width, kept, cuts, f"{module}.{second}")


def _existing(spec: ComponentSpec, module: str, *layers: str, repeats: int = 1, size: int = 1) -> Iterator[Cut]:
    """Yield cuts of the rows of those weights and biases that exist."""
    for layer in layers:
        for leaf in ("weight", "bias"):
            if f"{module}.{layer}.{leaf}" in spec.tensors:
                yield Cut(f"{module}.{layer}.{leaf}", 0, repeats, size)
