"""Which format and which rounding each layer of a component gets from a `quantize` step, and why others get none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sdcompress.errors import Problem, ProblemList, UserError, nearest
from sdcompress.families.registry import architecture_of
from sdcompress.quant.format import OPTIONS
from sdcompress.quant.registry import known_formats, known_roundings
from sdcompress.sources.layer_patterns import first_match, unmatched
from sdcompress.sources.spec import CONVOLUTIONS, ComponentSpec, Layer, layers_of

if TYPE_CHECKING:
    from sdcompress.quant.format import QuantFormat
    from sdcompress.quant.rounding import Rounding

_NOT_QUANTIZED = frozenset({"norm", "other"})

Patterns = tuple[str, ...]
GroupSize = Annotated[int | None, Field(ge=1, description="weights that share a scale; the format's own if left out")]
ScaleBits = Annotated[Literal[8, 16], Field(description="bits of a scale; 8: scales are quantized themselves")]
Rank = Annotated[int, Field(ge=0, description="rank of a low-rank correction in float16; 0: none")]
Hadamard = Annotated[bool, Field(description="rotate blocks of input channels")]


class Override(BaseModel):
    """Another format for the layers that match: `{layers: ["mid_block"], format: nf4}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layers: Annotated[Patterns, Field(min_length=1, description="patterns of the layers")]
    format: Annotated[str | None, Field(description="their format; null leaves the layers as they are")]
    group_size: GroupSize = None
    scale_bits: ScaleBits = 16
    rank: Rank = 0
    hadamard: Hadamard = False
    rounding: Annotated[
        str | None, Field(description="the step's if left out, or nearest where the format allows no other")
    ] = None


class FormatSettings(BaseModel):
    """Which layers get which format. `quantize` takes these fields in a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: str = Field(description="name of a format, such as int8, int4, uint4 or nf4")
    group_size: GroupSize = None
    scale_bits: ScaleBits = 16
    rank: Rank = 0
    hadamard: Hadamard = False
    rounding: str = Field(
        default="nearest", description="how codes are chosen: nearest, search, weighted-search, hqq or gptq"
    )
    bias_correction: bool = Field(
        default=False, description="shift biases by the mean error of the layer's output (calibrated)"
    )
    include: Patterns = Field(default=("*",), description="patterns of the layers to quantize")
    exclude: Patterns = Field(default=(), description="patterns of layers to keep as they are")
    overrides: tuple[Override, ...] = Field(
        default=(), description="other formats for some layers; the first that matches wins, before exclude and include"
    )
    keep_sensitive: bool | None = Field(
        default=None, description="keep sensitive layers; if left out, formats below 8 bits do"
    )
    convolutions: bool | None = Field(
        default=None, description="quantize convolutions; if left out, all formats but bitsandbytes' do"
    )


@dataclass(frozen=True)
class Choice:
    """What one layer gets: a format and a rounding, or no format and the reason."""

    layer: Layer
    format: QuantFormat | None
    reason: str = ""
    rounding: str = "nearest"


_FormatAndRounding = tuple["QuantFormat", str]


def choose(settings: FormatSettings, spec: ComponentSpec, target: str) -> list[Choice]:
    """Return the choice of every layer.

    Raises:
        UserError: with all that is wrong with the settings.
    """
    problems = ProblemList()
    default: _FormatAndRounding | None = None
    with problems.collect():
        default = _format_and_rounding(settings, settings.rounding, target)
    overrides: list[tuple[Override, _FormatAndRounding | None]] = []
    for index, override in enumerate(settings.overrides):
        with problems.collect(f"overrides.{index}"):
            wanted = None
            if override.format is not None:
                wanted = _format_and_rounding(override, override.rounding or settings.rounding, target)
            overrides.append((override, wanted))
    layers = layers_of(spec)
    names = [layer.name for layer in layers if layer.kind not in _NOT_QUANTIZED]
    problems += unmatched_patterns("include", settings.include, names, spec)
    problems += unmatched_patterns("exclude", settings.exclude, names, spec)
    for index, override in enumerate(settings.overrides):
        problems += unmatched_patterns(f"overrides.{index}.layers", override.layers, names, spec)
    if problems or default is None:
        raise UserError(problems)
    choices = [_choose_for(settings, layer, spec, default, overrides, target) for layer in layers]
    unfit = {choice.format.problem(choice.layer, target) for choice in choices if choice.format is not None}
    problems += sorted((problem for problem in unfit if problem is not None), key=str)[:8]
    if not problems and not any(choice.format for choice in choices):
        reasons = "; ".join(sorted({choice.reason for choice in choices if choice.reason}))
        problems.add("format", f"{settings.format} applies to no layer of {spec.name}; {reasons}")
    problems.raise_any()
    return choices


def unmatched_patterns(field: str, patterns: Sequence[str], names: list[str], spec: ComponentSpec) -> list[Problem]:
    """Return a problem for each pattern that matches none of the layers."""
    return [
        Problem(
            field, f"{pattern!r} matches no layer of {spec.name}; `sdcompress inspect MODEL --layers` lists the layers"
        )
        for pattern in unmatched(tuple(patterns), names)
    ]


def wanted_format(name: str, group_size: int | None, target: str, **options: Any) -> QuantFormat:
    """Return the format with its options: `scale_bits`, `rank` and `hadamard`, as far as they are given.

    Raises:
        UserError: there is no such format, or it lacks an option, or it cannot be packaged for the target.
    """
    known = known_formats()
    if name not in known:
        raise UserError(Problem("format", f"no format {name!r}; {nearest(name, known)}"))
    given = {option: value for option, value in options.items() if value != getattr(known[name], option)}
    fmt = replace(known[name], group_size=group_size, **given)
    problems = ProblemList(
        Problem(option, f"{fmt.name} has no such option; leave it out, or use {fmt.alternative}")
        for option in given
        if option not in fmt.options
    )
    if target not in fmt.targets:
        problems.add("format", f"{fmt.name} cannot be packaged for target {target}; use {fmt.alternative} there")
    problems.raise_any()
    return fmt


def is_grouped(layer: Layer, spec: ComponentSpec) -> bool:
    """Return whether the layer is a convolution in several groups."""
    grouped = architecture_of(spec.class_name).grouped
    return layer.kind in CONVOLUTIONS and first_match(grouped, layer.name) is not None


def _format_and_rounding(wanted: FormatSettings | Override, rounding: str, target: str) -> _FormatAndRounding:
    problems = ProblemList()
    fmt: QuantFormat | None = None
    with problems.collect():
        options = {option: getattr(wanted, option) for option in OPTIONS}
        fmt = wanted_format(str(wanted.format), wanted.group_size, target, **options)
    roundings: Mapping[str, type[Rounding]] = known_roundings()
    if rounding not in roundings:
        problems.add("rounding", f"no way of rounding {rounding!r}; {nearest(rounding, roundings)}")
    elif fmt is not None and fmt.roundings is not None and rounding not in fmt.roundings:
        if wanted.rounding is not None and wanted.rounding != "nearest":
            problems.add("rounding", f"{fmt.name} is rounded by {' or '.join(sorted(fmt.roundings))} only")
        rounding = "nearest"
    if problems or fmt is None:
        raise UserError(problems)
    return fmt, rounding


def _choose_for(
    settings: FormatSettings,
    layer: Layer,
    spec: ComponentSpec,
    default: _FormatAndRounding,
    overrides: list[tuple[Override, _FormatAndRounding | None]],
    target: str,
) -> Choice:
    if layer.kind in _NOT_QUANTIZED:
        return Choice(layer, None, "norms and bare parameters stay as they are")
    for override, wanted in overrides:
        if pattern := first_match(override.layers, layer.name):
            if wanted is None:
                return Choice(layer, None, f"spared by override {pattern}")
            return _if_it_can(layer, spec, wanted, True, target)
    if pattern := first_match(settings.exclude, layer.name):
        return Choice(layer, None, f"excluded by {pattern}")
    if not first_match(settings.include, layer.name):
        return Choice(layer, None, "matches no include pattern")
    fmt, _ = default
    keep_sensitive = fmt.keeps_sensitive if settings.keep_sensitive is None else settings.keep_sensitive
    sensitive = architecture_of(spec.class_name).sensitive if keep_sensitive else ()
    if pattern := first_match(sensitive, layer.name):
        return Choice(layer, None, f"sensitive layer {pattern} (keep_sensitive)")
    convolutions = fmt.library == "sdcompress" if settings.convolutions is None else settings.convolutions
    return _if_it_can(layer, spec, default, convolutions, target)


def _if_it_can(
    layer: Layer, spec: ComponentSpec, wanted: _FormatAndRounding, convolutions: bool, target: str
) -> Choice:
    """Return the format for the layer, or the reason why the layer cannot have it."""
    fmt, rounding = wanted
    if layer.kind in CONVOLUTIONS and not convolutions:
        return Choice(layer, None, f"{fmt.name} here is for linear layers only (set convolutions: true)")
    if layer.kind not in fmt.kinds_for(target):
        return Choice(layer, None, f"{fmt.name} cannot store a layer of kind {layer.kind}")
    if layer.kind == "conv" and len(layer.shape) != 4:
        return Choice(layer, None, "only two-dimensional convolutions are supported")
    t5 = spec.class_name.startswith(("T5", "UMT5"))
    if fmt.library == "bitsandbytes" and layer.name.endswith(".wo") and t5:
        return Choice(layer, None, "stock transformers keeps T5's wo in float")
    # An embedding looks rows up, so it has no input to calibrate on; of a grouped convolution no statistics are kept.
    if known_roundings()[rounding].calibrated and (layer.kind == "embedding" or is_grouped(layer, spec)):
        rounding = "search"
    return Choice(layer, fmt, rounding=rounding)
