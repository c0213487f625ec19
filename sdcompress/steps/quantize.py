"""quantize: store the weights of layers in few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from sdcompress import registry
from sdcompress.backends.torch.packaging import is_stock, package, package_specs, packed_specs
from sdcompress.components.observed import CALIBRATED
from sdcompress.components.sensitive import sensitive_patterns
from sdcompress.errors import UserError
from sdcompress.patterns import first_match, unmatched
from sdcompress.quant.error import sqnr_db
from sdcompress.quant.format import from_label
from sdcompress.spec import CONVOLUTIONS, ComponentSpec, Layer, TensorSpec, layers_of
from sdcompress.steps import Component, LayerOutcome, Planned, Record, Stage, Step

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantFormat, QuantizedTensor

_NOTHING_TO_ROUND = frozenset({"norm", "other"})


class Override(BaseModel):
    """Another format for the layers that match: `{layers: ["mid_block"], format: nf4}`; `format: null` spares them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layers: tuple[str, ...] = Field(min_length=1)
    format: str | None
    group_size: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Choice:
    """What one layer gets: a format, or None and why not."""

    layer: Layer
    format: QuantFormat | None
    reason: str = ""


class Quantize(Step):
    """`quantize: {format: int8}`: every layer the format can store, but those a pattern or the sensitive list spares.

    include, exclude and the overrides' layers are patterns of module names with `*`; a pattern also takes in all
    modules inside the one it names. Overrides come first, the first that matches wins; then exclude, then include.
    """

    kind = "quantize"
    stage = Stage.QUANTIZE
    format: str
    group_size: int | None = Field(default=None, ge=1)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    keep_sensitive: bool | None = None  # None: as the format does (4-bit formats keep them, 8-bit ones do not)
    convolutions: bool | None = None  # None: as the format's library does (bitsandbytes leaves them alone)
    activations: Literal["int8"] | None = None  # also round what goes into the layers, in calibrated ranges (ONNX)
    activations_exclude: tuple[str, ...] = ()  # patterns of layers whose weights alone are quantized

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        choices = self._choices(spec, target)
        observed = self._observed(choices, spec, target)
        chosen = {choice.layer.name: choice.format for choice in choices if choice.format is not None}
        packaged = package_specs(spec, chosen)
        if observed:
            quantization = {**packaged.config["quantization_config"], "activations": observed}
            packaged = packaged.replace(config={**packaged.config, "quantization_config": quantization})
        largest = max((_working_bytes(spec.tensors[f"{name}.weight"]) for name in chosen), default=0)
        outcomes = tuple(
            LayerOutcome(
                choice.layer.name, choice.layer.kind, choice.layer.parameters,
                choice.format.label if choice.format else None, choice.reason,
            )
            for choice in choices
        )  # fmt: skip
        libraries = frozenset(fmt.library for fmt in chosen.values()) - {"sdcompress"}
        count = len(observed)
        notes = (f"activations in 8 bits: {count} layers, calibrated ranges",) if observed else ()
        return Planned(packaged, outcomes, notes, largest, libraries)

    def apply(self, part: Component, planned: Planned, record: Record) -> Component:
        formats = {
            outcome.layer: from_label(outcome.format, registry.formats())
            for outcome in planned.layers
            if outcome.format
        }
        stock = is_stock(part.spec, formats)
        layer_of = {
            name: layer
            for layer, fmt in formats.items()
            for name in packed_specs(layer, fmt, part.spec.tensors[f"{layer}.weight"], stock)
        }
        ready: dict[str, torch.Tensor] = {}  # what is left of the layer quantized last

        def read(name: str) -> torch.Tensor:
            if name not in layer_of:
                return part.read(name)
            if name not in ready:
                layer = layer_of[name]
                tensor = _quantize(part, layer, formats[layer], record)
                ready.clear()
                ready.update(package(tensor, layer, part.spec.tensors[f"{layer}.weight"], stock))
            return ready.pop(name)

        return Component(planned.spec, read)

    def _choices(self, spec: ComponentSpec, target: str) -> list[Choice]:
        """Every layer's choice; raises UserError with all that is wrong with the step."""
        default = _format(self.format, self.group_size, target, "format")
        problems: list[str] = [default] if isinstance(default, str) else []
        others: list[tuple[Override, QuantFormat | None]] = []
        for index, override in enumerate(self.overrides):
            fmt = None
            if override.format is not None:
                made = _format(override.format, override.group_size, target, f"overrides.{index}.format")
                if isinstance(made, str):
                    problems.append(made)
                    continue
                fmt = made
            others.append((override, fmt))
        layers = layers_of(spec)
        names = [layer.name for layer in layers if layer.kind not in _NOTHING_TO_ROUND]
        problems += _unmatched("include", self.include, names, spec)
        problems += _unmatched("exclude", self.exclude, names, spec)
        for index, override in enumerate(self.overrides):
            problems += _unmatched(f"overrides.{index}.layers", override.layers, names, spec)
        if problems or isinstance(default, str):
            raise UserError(problems)
        choices = [self._choice(layer, spec, default, others) for layer in layers]
        problems += sorted(
            {f"group_size: {problem}" for choice in choices if choice.format
             and (problem := choice.format.problem(choice.layer))}
        )[:8]  # fmt: skip
        if not problems and not any(choice.format for choice in choices):
            problems.append(f"format: {self.format} applies to no layer of {spec.name}; {_reasons(choices)}")
        if problems:
            raise UserError(problems)
        return choices

    def _observed(self, choices: list[Choice], spec: ComponentSpec, target: str) -> list[str]:
        """The layers whose activations are rounded too. UserError where that cannot be done."""
        if self.activations is None:
            if self.activations_exclude:
                raise UserError("activations_exclude: says nothing without activations: int8")
            return []
        if target != "onnx":
            raise UserError("activations: are rounded for target: onnx only; leave this out, or use target: onnx")
        if spec.class_name not in CALIBRATED:
            raise UserError(
                f"activations: no ranges can be calibrated for {spec.name} ({spec.class_name}); leave this out"
            )
        if any(tensor.dtype == "F16" for tensor in spec.tensors.values()):
            raise UserError(
                f"activations: 8-bit kernels give float32, and {spec.name} is in float16; put "
                f"`cast: {{dtype: float32}}` before this step"
            )
        able = [
            choice.layer.name
            for choice in choices
            if choice.format is not None
            and choice.format.bits == 8
            and choice.format.group_size is None
            and choice.layer.kind in {"linear"} | CONVOLUTIONS
        ]
        if not able:
            raise UserError(
                f"activations: go with 8-bit weights in linear layers and convolutions without group_size, of which "
                f"{spec.name} gets none here; leave this out, or use format: int8"
            )
        problems = _unmatched("activations_exclude", self.activations_exclude, able, spec)
        if problems:
            raise UserError(problems)
        return [name for name in able if not first_match(self.activations_exclude, name)]

    def _choice(
        self,
        layer: Layer,
        spec: ComponentSpec,
        default: QuantFormat,
        overrides: list[tuple[Override, QuantFormat | None]],
    ) -> Choice:
        if layer.kind in _NOTHING_TO_ROUND:
            return Choice(layer, None, "norms and bare parameters stay as they are")
        for override, fmt in overrides:
            if pattern := first_match(override.layers, layer.name):
                if fmt is None:
                    return Choice(layer, None, f"spared by override {pattern}")
                return self._storable(layer, spec, fmt, convolutions=True)
        if pattern := first_match(self.exclude, layer.name):
            return Choice(layer, None, f"excluded by {pattern}")
        if not first_match(self.include, layer.name):
            return Choice(layer, None, "matches no include pattern")
        keep_sensitive = default.keeps_sensitive if self.keep_sensitive is None else self.keep_sensitive
        if keep_sensitive and (pattern := first_match(sensitive_patterns(spec.class_name), layer.name)):
            return Choice(layer, None, f"sensitive layer {pattern} (keep_sensitive)")
        own = default.library == "sdcompress"
        return self._storable(layer, spec, default, own if self.convolutions is None else self.convolutions)

    def _storable(self, layer: Layer, spec: ComponentSpec, fmt: QuantFormat, convolutions: bool) -> Choice:
        if layer.kind in CONVOLUTIONS and not convolutions:
            return Choice(layer, None, f"{fmt.name} here is for linear layers only (set convolutions: true)")
        if layer.kind not in fmt.kinds:
            return Choice(layer, None, f"{fmt.name} cannot store a layer of kind {layer.kind}")
        if layer.kind == "conv" and len(layer.shape) != 4:
            return Choice(layer, None, "only two-dimensional convolutions are supported")
        if fmt.library == "bitsandbytes" and layer.name.endswith(".wo") and spec.class_name.startswith(("T5", "UMT5")):
            return Choice(layer, None, "stock transformers keeps T5's wo in float")
        if layer.name == "shared" and spec.class_name.startswith(("T5", "UMT5")):
            return Choice(layer, None, "embedding shared between two modules")
        return Choice(layer, fmt)


def _format(name: str, group_size: int | None, target: str, path: str) -> QuantFormat | str:
    """The format, or what is wrong with asking for it."""
    known = registry.formats()
    if name not in known:
        return f"{path}: no format {name!r}; {registry.nearest(name, known)}"
    fmt = known[name](group_size)
    if target not in fmt.targets:
        return f"{path}: {name} cannot be packaged for target {target}; use {fmt.alternative} there"
    return fmt


def _unmatched(path: str, patterns: tuple[str, ...], names: list[str], spec: ComponentSpec) -> list[str]:
    return [
        f"{path}: {pattern!r} matches no layer of {spec.name}; `sdcompress inspect MODEL --layers` lists them"
        for pattern in unmatched(patterns, names)
    ]


def _reasons(choices: list[Choice]) -> str:
    return "; ".join(sorted({choice.reason for choice in choices if choice.reason}))


def _working_bytes(weight: TensorSpec) -> int:
    """Bytes held while one weight is worked on: itself, its codes, twice in float32 for its error, and chunks."""
    count = weight.parameters
    return weight.size_bytes + count + 8 * count + 6 * 4 * min(count, 2**22)


def _quantize(part: Component, layer: str, fmt: QuantFormat, record: Record) -> QuantizedTensor:
    """The layer's weight in `fmt`; its error goes into the record. UserError for a weight with NaN or Inf."""
    import torch

    name = f"{layer}.weight"
    weight = part.read(name)
    try:
        tensor = fmt.quantize(weight)
    except ValueError as error:
        raise UserError(f"{part.spec.name}.{name}: {error}; the source's weights are broken") from None
    stored_bytes = sum(spec.size_bytes for spec in fmt.stored(part.spec.tensors[name]).values())
    record.layers[layer] = {
        "format": fmt.label,
        "bits_per_weight": 8 * stored_bytes / weight.numel(),
        "weight_sqnr_db": sqnr_db(weight, tensor.dequantize(torch.float32)),
    }
    return tensor
