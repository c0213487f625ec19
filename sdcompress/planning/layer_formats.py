"""Which format, and which way of rounding, each layer of a component gets from a `quantize` step, and why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from sdcompress.errors import UserError, nearest
from sdcompress.families.registry import known_architectures
from sdcompress.families.sensitive import sensitive_patterns
from sdcompress.quant.registry import known_formats, known_roundings
from sdcompress.sources.layer_patterns import first_match, unmatched
from sdcompress.sources.spec import CONVOLUTIONS, ComponentSpec, Layer, layers_of

if TYPE_CHECKING:
    from sdcompress.planning.steps.quantize import Quantize
    from sdcompress.quant.format import QuantFormat
    from sdcompress.quant.rounding import Rounding

OPTIONS: dict[str, Any] = {"scale_bits": 16, "rank": 0, "hadamard": False}  # of formats, and what leaves them out
_NOTHING_TO_ROUND = frozenset({"norm", "other"})


class Override(BaseModel):
    """Another format for the layers that match: `{layers: ["mid_block"], format: nf4}`; `format: null` spares them.

    Its format's options are its own; rounding is the step's unless given, `nearest` where the format allows no other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    layers: tuple[str, ...] = Field(min_length=1)
    format: str | None
    group_size: int | None = Field(default=None, ge=1)
    scale_bits: Literal[8, 16] = 16
    rank: int = Field(default=0, ge=0)
    hadamard: bool = False
    rounding: str | None = None


class Asked(Protocol):
    """What a step or an override says of the format it wants; options it does not have are left out."""

    @property
    def format(self) -> str | None: ...

    @property
    def group_size(self) -> int | None: ...


@dataclass(frozen=True)
class Choice:
    """What one layer gets: a format and how its codes are chosen, or None and why not."""

    layer: Layer
    format: QuantFormat | None
    reason: str = ""
    rounding: str = "nearest"


@dataclass(frozen=True)
class _Wanted:
    """A format with a way of rounding, as a step or one of its overrides asks for it."""

    format: QuantFormat
    rounding: str


def choose(step: Quantize, spec: ComponentSpec, target: str) -> list[Choice]:
    """Every layer's choice. UserError with all that is wrong with the step, each problem beginning with a field."""
    problems: list[str] = []
    default = _wanted(step, step.rounding, target, "", problems)
    others: list[tuple[Override, _Wanted | None]] = []
    for index, override in enumerate(step.overrides):
        wanted = None
        if override.format is not None:
            wanted = _wanted(override, override.rounding or step.rounding, target, f"overrides.{index}.", problems)
            if wanted is None:
                continue
        others.append((override, wanted))
    layers = layers_of(spec)
    names = [layer.name for layer in layers if layer.kind not in _NOTHING_TO_ROUND]
    problems += unmatched_patterns("include", step.include, names, spec)
    problems += unmatched_patterns("exclude", step.exclude, names, spec)
    for index, override in enumerate(step.overrides):
        problems += unmatched_patterns(f"overrides.{index}.layers", override.layers, names, spec)
    if problems or default is None:
        raise UserError(problems)
    choices = [_choice(step, layer, spec, default, others, target) for layer in layers]
    problems += sorted({_placed(choice, target) for choice in choices} - {""})[:8]
    if not problems and not any(choice.format for choice in choices):
        reasons = "; ".join(sorted({choice.reason for choice in choices if choice.reason}))
        problems.append(f"format: {step.format} applies to no layer of {spec.name}; {reasons}")
    if problems:
        raise UserError(problems)
    return choices


def unmatched_patterns(path: str, patterns: Sequence[str], names: list[str], spec: ComponentSpec) -> list[str]:
    """A problem for each pattern that matches none of the layers."""
    return [
        f"{path}: {pattern!r} matches no layer of {spec.name}; `sdcompress inspect MODEL --layers` lists them"
        for pattern in unmatched(tuple(patterns), names)
    ]


def wanted_format(asked: Asked, target: str, path: str, problems: list[str]) -> QuantFormat | None:
    """The format with its options that a step asks for; None where something is wrong, which `problems` tells."""
    known: Mapping[str, type[QuantFormat]] = known_formats()
    name = str(asked.format)
    if name not in known:
        problems.append(f"{path}format: no format {name!r}; {nearest(name, known)}")
        return None
    options = {option: getattr(asked, option, absent) for option, absent in OPTIONS.items()}
    given = {option: value for option, value in options.items() if value != OPTIONS[option]}
    fmt = known[name](asked.group_size, **given)
    found = [
        f"{path}{option}: {fmt.name} has no such option; leave it out"
        + (f", or use {fmt.alternative}" if fmt.alternative else "")
        for option in given
        if option not in fmt.options
    ]
    if target not in fmt.targets:
        found.append(f"{path}format: {fmt.name} cannot be packaged for target {target}; use {fmt.alternative} there")
    problems += found
    return None if found else fmt


def _wanted(asked: Quantize | Override, rounding: str, target: str, path: str, problems: list[str]) -> _Wanted | None:
    """The format and the way of rounding asked for; None where something is wrong, which `problems` tells."""
    fmt = wanted_format(asked, target, path, problems)
    roundings: Mapping[str, type[Rounding]] = known_roundings()
    if rounding not in roundings:
        problems.append(f"{path}rounding: no way of rounding {rounding!r}; {nearest(rounding, roundings)}")
        return None
    if fmt is None:
        return None
    if fmt.roundings is not None and rounding not in fmt.roundings:
        if asked.rounding is not None and asked.rounding != "nearest":
            problems.append(f"{path}rounding: {fmt.name} is rounded by {' or '.join(sorted(fmt.roundings))} only")
            return None
        rounding = "nearest"
    return _Wanted(fmt, rounding)


def _choice(
    step: Quantize,
    layer: Layer,
    spec: ComponentSpec,
    default: _Wanted,
    others: list[tuple[Override, _Wanted | None]],
    target: str,
) -> Choice:
    if layer.kind in _NOTHING_TO_ROUND:
        return Choice(layer, None, "norms and bare parameters stay as they are")
    for override, wanted in others:
        if pattern := first_match(override.layers, layer.name):
            if wanted is None:
                return Choice(layer, None, f"spared by override {pattern}")
            return _storable(layer, spec, wanted, True, target)
    if pattern := first_match(step.exclude, layer.name):
        return Choice(layer, None, f"excluded by {pattern}")
    if not first_match(step.include, layer.name):
        return Choice(layer, None, "matches no include pattern")
    keep_sensitive = default.format.keeps_sensitive if step.keep_sensitive is None else step.keep_sensitive
    if keep_sensitive and (pattern := first_match(sensitive_patterns(spec.class_name), layer.name)):
        return Choice(layer, None, f"sensitive layer {pattern} (keep_sensitive)")
    own = default.format.library == "sdcompress"
    return _storable(layer, spec, default, own if step.convolutions is None else step.convolutions, target)


def _storable(layer: Layer, spec: ComponentSpec, wanted: _Wanted, convolutions: bool, target: str) -> Choice:
    fmt = wanted.format
    if layer.kind in CONVOLUTIONS and not convolutions:
        return Choice(layer, None, f"{fmt.name} here is for linear layers only (set convolutions: true)")
    if layer.kind not in fmt.kinds_for(target):
        return Choice(layer, None, f"{fmt.name} cannot store a layer of kind {layer.kind}")
    if layer.kind == "conv" and len(layer.shape) != 4:
        return Choice(layer, None, "only two-dimensional convolutions are supported")
    t5 = spec.class_name.startswith(("T5", "UMT5"))
    if fmt.library == "bitsandbytes" and layer.name.endswith(".wo") and t5:
        return Choice(layer, None, "stock transformers keeps T5's wo in float")
    rounding = wanted.rounding
    # A table's rows are looked up: nothing goes in that could be calibrated on. Convolutions in groups have inputs of
    # which no statistics are gathered.
    if known_roundings()[rounding].calibrated and (layer.kind == "embedding" or is_grouped(layer, spec)):
        rounding = "search"
    return Choice(layer, fmt, rounding=rounding)


def is_grouped(layer: Layer, spec: ComponentSpec) -> bool:
    """Whether the layer is a convolution in several groups."""
    known = known_architectures().get(spec.class_name)
    return layer.kind in CONVOLUTIONS and known is not None and first_match(known.grouped, layer.name) is not None


def _placed(choice: Choice, target: str) -> str:
    """What stands in the way of the layer's format, beginning with the field; "" if nothing does."""
    problem = choice.format.problem(choice.layer, target) if choice.format else None
    if not problem:
        return ""
    return problem if problem.partition(":")[0] in OPTIONS else f"group_size: {problem}"
