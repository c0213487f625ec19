"""What can be made narrower inside a component, and all tensors that have to be cut together for it.

Widths that only one module knows: the heads of an attention, the inner width of a feed-forward, the channels between a
resnet's two convolutions. What goes in and out keeps its shape, so no group of dependent layers reaches any further
(DepGraph, arXiv:2301.12900, finds the same groups where the residual stream is kept).
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
# What the kept width of a feed-forward is a multiple of, if the width before is: of vectors, and of groups of 32.
_FEED_FORWARD_UNIT = 32


@dataclass(frozen=True)
class Cut:
    """A tensor's axis of `repeats` times all heads or channels, each `size` long there."""

    tensor: str
    axis: int
    repeats: int = 1
    size: int = 1


@dataclass(frozen=True)
class Group:
    """Heads or channels of one module, `kept` of which stay, equally many of each of their `partitions`."""

    module: str
    kind: str  # heads, feed_forward or resnet_channels
    width: int
    kept: int
    cuts: tuple[Cut, ...]
    consumer: str  # the layer that reads them, along axis 1 of its weight
    partitions: int = 1


def width_groups(
    spec: ComponentSpec, heads: float | None, feed_forward: float | None, resnet_channels: float | None
) -> tuple[Group, ...]:
    """The groups that keeping these shares makes narrower. UserError where a share changes nothing."""
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
    """The component with the groups' tensors cut."""
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
    """Heads of a block's attentions; `attention_head_dim` is what diffusers' UNet calls their number."""
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
    """Cuts of the rows of those weights and biases that there are."""
    for layer in layers:
        for leaf in ("weight", "bias"):
            if f"{module}.{layer}.{leaf}" in spec.tensors:
                yield Cut(f"{module}.{layer}.{leaf}", 0, repeats, size)
