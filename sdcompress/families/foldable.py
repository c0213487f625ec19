"""Where the inputs of layers can be scaled, channel by channel, at no cost: the tensors that take the inverse scale.

If the output of the preceding module is divided by s_c in each channel c, and the layer's weight is multiplied by s_c,
the network computes the same (SmoothQuant, arXiv:2211.10438, section 4; AWQ, arXiv:2306.00978, section 3.2). The
preceding module must pass a factor on: it is a norm with weight and bias, or a linear layer followed by nothing but
sums, an attention's weighted means, or a product with another factor. Outputs that other modules read too, or that a
nonlinearity follows, are not folded. A LoRA made for the original does not fit scaled layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sdcompress.families.architecture import FoldRule
from sdcompress.families.registry import architecture_of
from sdcompress.sources.spec import ComponentSpec

Rows = tuple[int, int]  # first row and the one after the last


@dataclass(frozen=True)
class Fold:
    """Layers that share their input channels, and the tensors that produce these channels for them alone.

    Args:
        producers: name of each tensor, with the rows that give the channels, in order; None: all rows.
        consumers: names of the layers that read the channels.
    """

    producers: tuple[tuple[str, Rows | None], ...]
    consumers: tuple[str, ...]


def folds(spec: ComponentSpec) -> tuple[Fold, ...]:
    """Return the component's folds, sorted by the names of their producers; none for an unknown class.

    Folds can be applied in any order and together: where a layer is a consumer of one and a producer of another, the
    one scales its columns and the other its rows.

    Examples:
        >>> from sdcompress.sources.spec import ComponentSpec, parameter
        >>> shapes = {"layer_norm2.weight": (8,), "layer_norm2.bias": (8,), "mlp.fc1.weight": (32, 8)}
        >>> tensors = {name: parameter(shape, "F16") for name, shape in shapes.items()}
        >>> (fold,) = folds(ComponentSpec("text_encoder", "transformers", "CLIPTextModel", {}, tensors))
        >>> fold.producers, fold.consumers
        ((('layer_norm2.weight', None), ('layer_norm2.bias', None)), ('mlp.fc1',))
    """
    rules = (rule for rule in architecture_of(spec.class_name).folds if not _is_excluded(rule, spec))
    found = (fold for rule in rules for fold in _folds_of(rule, spec))
    return tuple(sorted(found, key=lambda fold: (fold.producers[0][0], fold.consumers)))


def _is_excluded(rule: FoldRule, spec: ComponentSpec) -> bool:
    return any(_is_true(spec.config.get(key)) for key in rule.unless)


def _is_true(value: Any) -> bool:
    """Return whether a config entry is true, or one of a list of entries."""
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
