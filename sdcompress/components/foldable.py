"""Where the inputs of layers can be scaled, channel by channel, at no cost: the tensors that take the inverse scale.

If what comes before a layer gives each channel c divided by s_c and the layer's weight has it times s_c, the network
computes the same (SmoothQuant, arXiv:2211.10438, section 4; AWQ, arXiv:2306.00978, section 3.2). What comes before
must pass on a factor: a norm's weight and bias, or the rows of a linear layer with nothing but sums, an attention's
weighted means, or another factor in between. What layers give to more than their consumers, and what a
nonlinearity follows, is left alone. A LoRA made for the original does not fit scaled layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdcompress.spec import ComponentSpec

Rows = tuple[int, int]  # first row and the one after the last


@dataclass(frozen=True)
class Fold:
    """The channels that `producers` give go to `consumers`, names of layers, and nowhere else.

    producers: names of tensors, each with the rows that give those channels, in order; None: all rows.
    """

    producers: tuple[tuple[str, Rows | None], ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class _Rule:
    """Modules of one parent: all of `consumers` take what `producer` gives, and so do those of `optional` there are.

    A module of `also` that there is gives the same channels to the same modules.
    """

    producer: str
    consumers: tuple[str, ...]
    gated: bool = False  # the first half of the producer's rows; the second half is what they are multiplied with
    also: str | None = None
    optional: tuple[str, ...] = ()


# diffusers' Attention; its heads are equal parts of the channels in the same order before and after.
_VALUES = _Rule("to_v", ("to_out.0",), also="add_v_proj", optional=("to_add_out",))
_SELF_ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
_DIFFUSERS_BLOCKS = (
    _Rule("norm", ("proj_in",)),  # of Transformer2DModel
    _Rule("norm1", _SELF_ATTENTION),
    _Rule("norm2", ("attn2.to_q",)),  # its keys and values are made of the text
    _Rule("norm3", ("ff.net.0.proj",)),
    _Rule("group_norm", ("to_q", "to_k", "to_v")),
    _Rule("ff.net.0.proj", ("ff.net.2",), gated=True),
    _VALUES,
)
_CLIP = (
    _Rule("layer_norm1", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    _Rule("layer_norm2", ("mlp.fc1",)),
    _Rule("self_attn.v_proj", ("self_attn.out_proj",)),
)
_T5 = (
    _Rule("layer.0.layer_norm", ("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v")),
    _Rule("layer.0.SelfAttention.v", ("layer.0.SelfAttention.o",)),
    _Rule("layer.1.layer_norm", ("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1")),
    _Rule("layer.1.layer_norm", ("layer.1.DenseReluDense.wi",)),
    _Rule("layer.1.DenseReluDense.wi_1", ("layer.1.DenseReluDense.wo",)),  # wi_0 goes through the nonlinearity
)
_RULES: Mapping[str, tuple[_Rule, ...]] = {
    "UNet2DConditionModel": _DIFFUSERS_BLOCKS,
    "AutoencoderKL": _DIFFUSERS_BLOCKS,
    "SD3Transformer2DModel": (_VALUES,),  # its norms are scaled by the timestep, through layers of their own
    "FluxTransformer2DModel": (_VALUES,),
    "CLIPTextModel": _CLIP,
    "CLIPTextModelWithProjection": _CLIP,
    "StableDiffusionSafetyChecker": _CLIP,
    "T5EncoderModel": _T5,
}


def folds(spec: ComponentSpec) -> tuple[Fold, ...]:
    """The component's folds, in the order of their producers' names; empty for a class nothing is known about.

    They can be applied in any order and together: where a layer is consumer of one and producer of another, one
    scales its columns and the other its rows.
    """
    found = (fold for rule in _rules(spec) for fold in _folds_of(rule, spec))
    return tuple(sorted(found, key=lambda fold: (fold.producers[0][0], fold.consumers)))


def _rules(spec: ComponentSpec) -> tuple[_Rule, ...]:
    rules = _RULES.get(spec.class_name, ())
    if any(_truthy(spec.config.get(key)) for key in ("only_cross_attention", "mid_block_only_cross_attention")):
        return tuple(rule for rule in rules if rule.consumers != _SELF_ATTENTION)  # some attn1 read the text
    return rules


def _truthy(value: Any) -> bool:
    return any(value) if isinstance(value, list | tuple) else bool(value)


def _folds_of(rule: _Rule, spec: ComponentSpec) -> Iterator[Fold]:
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
