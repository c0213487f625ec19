"""Where the inputs of layers can be scaled, channel by channel, at no cost: the tensors that take the inverse scale.

If what comes before a layer gives each channel c divided by s_c and the layer's weight has it times s_c, the network
computes the same (SmoothQuant, arXiv:2211.10438, section 4; AWQ, arXiv:2306.00978, section 3.2). What comes before
must pass on a factor: a norm's weight and bias, or the rows of a linear layer with nothing but sums, an attention's
weighted means, or another factor in between. What layers give to more than their consumers, and what a
nonlinearity follows, is left alone. A LoRA made for the original does not fit scaled layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sdcompress.families.architecture import FoldRule
from sdcompress.families.registry import architecture_of
from sdcompress.families.unet import SELF_ATTENTION
from sdcompress.sources.spec import ComponentSpec

Rows = tuple[int, int]  # first row and the one after the last


@dataclass(frozen=True)
class Fold:
    """The channels that `producers` give go to `consumers`, names of layers, and nowhere else.

    producers: names of tensors, each with the rows that give those channels, in order; None: all rows.
    """

    producers: tuple[tuple[str, Rows | None], ...]
    consumers: tuple[str, ...]


def folds(spec: ComponentSpec) -> tuple[Fold, ...]:
    """The component's folds, in the order of their producers' names; empty for a class nothing is known about.

    They can be applied in any order and together: where a layer is consumer of one and producer of another, one
    scales its columns and the other its rows.
    """
    found = (fold for rule in _rules(spec) for fold in _folds_of(rule, spec))
    return tuple(sorted(found, key=lambda fold: (fold.producers[0][0], fold.consumers)))


def _rules(spec: ComponentSpec) -> tuple[FoldRule, ...]:
    rules = architecture_of(spec.class_name).folds
    if any(_truthy(spec.config.get(key)) for key in ("only_cross_attention", "mid_block_only_cross_attention")):
        return tuple(rule for rule in rules if rule.consumers != SELF_ATTENTION)  # some attn1 read the text
    return rules


def _truthy(value: Any) -> bool:
    return any(value) if isinstance(value, list | tuple) else bool(value)


def _folds_of(rule: FoldRule, spec: ComponentSpec) -> Iterator[Fold]:
    shapes = {name: tensor.shape for name, tensor in spec.tensors.items()}
    ending = f"{rule.producer}.weight"
    for name in spec.tensors:
        prefix = name.removesuffix(ending)
        if prefix == name or not (prefix == "" or prefix.endswith(".")):
            continue
        consumers = tuple(prefix + module for module in rule.consumers)
        if not all(f"{module}.weight" in shapes for module in consumers):
            continue
        consumers += tuple(prefix + one for one in rule.optional if f"{prefix}{one}.weight" in shapes)
        modules = [prefix + one for one in (rule.producer, rule.also) if one and f"{prefix}{one}.weight" in shapes]
        tensors = [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]
        channels = shapes[f"{consumers[0]}.weight"][1]
        rows = (0, channels) if rule.gated else None
        expected = 2 * channels if rule.gated else channels
        producers = tuple((tensor, rows) for tensor in tensors if tensor in shapes)
        if all(shapes[tensor][0] == expected for tensor, _ in producers) and all(
            shapes[f"{module}.weight"][1] == channels for module in consumers
        ):
            yield Fold(producers, consumers)
