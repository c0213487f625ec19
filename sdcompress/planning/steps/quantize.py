"""quantize: store the weights of layers in few bits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdcompress.backends.component import Component
from sdcompress.backends.torch.packaging import (
    DYNAMIC,
    dynamic_layers,
    is_stock,
    package,
    package_specs,
    packed_specs,
    rounds_inputs,
)
from sdcompress.calibration.observed_layers import can_be_calibrated
from sdcompress.errors import UserError
from sdcompress.families.registry import known_architectures
from sdcompress.planning.layer_formats import Choice, Override, choose, is_grouped, unmatched_patterns
from sdcompress.planning.step_cost import cost_note
from sdcompress.planning.steps import LayerOutcome, Planned, Record, Stage, Step
from sdcompress.quant.compose import quantize_weight, restored
from sdcompress.quant.corrections.bias import corrected_bias
from sdcompress.quant.corrections.hadamard import block_size, joined_sizes
from sdcompress.quant.error import output_sqnr_db, rounding_sqnr_db, sqnr_db
from sdcompress.quant.format import from_label
from sdcompress.quant.registry import known_formats, known_roundings
from sdcompress.quant.statistics import Limits, block_sizes
from sdcompress.sources.layer_patterns import first_match
from sdcompress.sources.spec import CONVOLUTIONS, ComponentSpec, Layer, TensorSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantFormat, QuantizedTensor


class Quantize(Step):
    """`quantize: {format: int8}`: every layer the format can store, but those a pattern or the sensitive list spares.

    include, exclude and the overrides' layers are patterns of module names with `*`; a pattern also takes in all
    modules inside the one it names. Overrides come first, the first that matches wins; then exclude, then include.
    weighted-search, gptq and bias_correction are calibrated on what goes into the layers while pictures are drawn.
    """

    kind = "quantize"
    stage = Stage.QUANTIZE
    format: str
    group_size: int | None = Field(default=None, ge=1)
    scale_bits: Literal[8, 16] = 16  # 8: scales are rounded to 8 bits themselves
    rank: int = Field(default=0, ge=0)  # of a float16 low-rank correction; 0: none
    hadamard: bool = False  # rotate blocks of input channels
    rounding: str = "nearest"  # how codes are chosen: nearest, search, weighted-search, hqq, gptq
    bias_correction: bool = False  # shift biases by the mean error of the layer's output
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    keep_sensitive: bool | None = None  # None: as the format does (4-bit formats keep them, 8-bit ones do not)
    convolutions: bool | None = None  # None: as the format's library does (bitsandbytes leaves them alone)
    # Also round what goes into the layers: for ONNX in calibrated ranges, in torch as they run, into linear ones alone.
    activations: Literal["int8"] | None = None
    activations_exclude: tuple[str, ...] = ()  # patterns of layers whose weights alone are quantized

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        choices = choose(self, spec, target)
        observed = self._observed(choices, spec, target)
        rounded = sorted(self._rounded(choices, spec, target))
        calibrated = self._calibrated(choices, spec)
        chosen = {choice.layer.name: choice.format for choice in choices if choice.format is not None}
        packaged = package_specs(spec, chosen, target)
        for key, layers in (("activations", observed), (DYNAMIC, rounded)):
            if layers:
                quantization = {**packaged.config["quantization_config"], key: layers}
                packaged = packaged.replace(config={**packaged.config, "quantization_config": quantization})
        working = [
            _working_bytes(spec.tensors[f"{choice.layer.name}.weight"], choice.format, choice.layer.name in calibrated)
            for choice in choices
            if choice.format is not None
        ]
        outcomes = tuple(
            LayerOutcome(
                choice.layer.name, choice.layer.kind, choice.layer.parameters,
                choice.format.label if choice.format else None, choice.reason, choice.rounding,
            )
            for choice in choices
        )  # fmt: skip
        libraries = frozenset(fmt.library for fmt in chosen.values()) - {"sdcompress"}
        notes = []
        if observed:
            notes.append(f"activations in 8 bits: {len(observed)} layers, calibrated ranges")
        overflowing = [name for name in observed if not chosen[name].sums_fit_16_bits]
        if overflowing:
            notes.append(
                f"x86 processors without VNNI (AVX2 alone) add 8-bit products in 16 bits, which sums of "
                f"{len(overflowing)} of these layers may overflow; format: int8-unsaturated stays within them"
            )
        if rounded:
            notes.append(
                f"activations in 8 bits: {len(rounded)} linear layers, rounded as they run, a scale for each token"
            )
        if calibrated:
            notes.append(f"calibrated on what goes into them: {len(calibrated)} layers")
        costs = ((chosen[name], name in rounded) for name in map(_unpacked_layer, choices) if name)
        known = known_architectures().get(spec.class_name)
        denoises = known is not None and known.role == "denoiser"
        if target == "torch" and denoises and (note := cost_note(costs)):
            notes.append(note)
        return Planned(packaged, outcomes, tuple(notes), max(working, default=0), libraries, calibrated, target)

    def apply(self, part: Component, planned: Planned, record: Record) -> Component:
        import torch

        outcomes = {outcome.layer: outcome for outcome in planned.layers if outcome.format}
        formats = {name: from_label(str(one.format), known_formats()) for name, one in outcomes.items()}
        stock = is_stock(part.spec, formats)
        layer_of: dict[str, str] = {}
        for layer, fmt in formats.items():
            weight = part.spec.tensors[f"{layer}.weight"]
            layer_of |= dict.fromkeys(packed_specs(layer, fmt, weight, stock, planned.target), layer)
            if layer in planned.calibrated and self.bias_correction and f"{layer}.bias" in part.spec.tensors:
                layer_of[f"{layer}.bias"] = layer
        dynamic = frozenset(dynamic_layers(planned.spec.config))
        ready: dict[str, torch.Tensor] = {}  # what is left of the layer quantized last

        def read(name: str) -> torch.Tensor:
            if name not in layer_of:
                return part.read(name)
            if name not in ready:
                layer = layer_of[name]
                ready.clear()
                weight = part.read(f"{layer}.weight")
                tensor = _quantize(part, layer, weight, formats[layer], outcomes[layer].method, record)
                if layer in dynamic:
                    record.layers[layer]["activations"] = "int8"
                ready.update(package(tensor, layer, part.spec.tensors[f"{layer}.weight"], stock, planned.target))
                bias = f"{layer}.bias"
                if bias in layer_of:
                    mean = part.statistics[layer].mean
                    ready[bias] = corrected_bias(part.read(bias), weight, restored(tensor, torch.float32), mean)
            return ready.pop(name)

        return part.becomes(planned.spec, read)

    def _calibrated(self, choices: list[Choice], spec: ComponentSpec) -> tuple[str, ...]:
        """The layers of whose inputs statistics are needed. UserError where none can be gathered."""
        roundings = known_roundings()
        layers = tuple(
            choice.layer.name
            for choice in choices
            if choice.format is not None
            and choice.layer.kind in {"linear"} | CONVOLUTIONS
            and (roundings[choice.rounding].calibrated or self._corrects(choice.layer, spec))
        )
        if layers and not can_be_calibrated(spec):
            field = "rounding" if roundings[self.rounding].calibrated else "bias_correction"
            raise UserError(
                f"{field}: nothing can be calibrated for {spec.name} ({spec.class_name}); give it a step of its own, "
                f"with rounding: search or hqq"
            )
        return layers

    def _corrects(self, layer: Layer, spec: ComponentSpec) -> bool:
        return self.bias_correction and f"{layer.name}.bias" in spec.tensors and not is_grouped(layer, spec)

    def _observed(self, choices: list[Choice], spec: ComponentSpec, target: str) -> list[str]:
        """The layers whose activations are rounded in calibrated ranges. UserError where that cannot be done."""
        if self.activations is None:
            if self.activations_exclude:
                raise UserError("activations_exclude: says nothing without activations: int8")
            return []
        if target != "onnx":
            return []
        if not can_be_calibrated(spec):
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
        return self._not_excluded(able, "linear layers and convolutions", spec)

    def _rounded(self, choices: list[Choice], spec: ComponentSpec, target: str) -> list[str]:
        """The layers that round their inputs as they run, in torch. UserError where there are none to be had."""
        if self.activations is None or target != "torch":
            return []
        able = [
            choice.layer.name
            for choice in choices
            if choice.format is not None and choice.layer.kind == "linear" and rounds_inputs(choice.format)
        ]
        return self._not_excluded(able, "linear layers", spec)

    def _not_excluded(self, able: list[str], kinds: str, spec: ComponentSpec) -> list[str]:
        """Those of the layers whose activations can be rounded that no pattern spares."""
        if not able:
            raise UserError(
                f"activations: go with 8-bit weights in {kinds} without group_size, of which {spec.name} gets none "
                f"here; leave this out, or use format: int8"
            )
        problems = unmatched_patterns("activations_exclude", self.activations_exclude, able, spec)
        if problems:
            raise UserError(problems)
        return [name for name in able if not first_match(self.activations_exclude, name)]


def _unpacked_layer(choice: Choice) -> str | None:
    """The layer's name if it unpacks its whole weight at each step: an embedding looks some rows up."""
    return None if choice.format is None or choice.layer.kind == "embedding" else choice.layer.name


def _working_bytes(weight: TensorSpec, fmt: QuantFormat, calibrated: bool) -> int:
    """Bytes held while one weight is worked on: itself, its codes, twice in float32 for its error, and chunks.

    A low-rank correction holds three more copies in float32 and, for the singular vectors, four square matrices of the
    shorter side. Calibrated rounding holds five more copies, and four of the blocks of its inputs' moments.
    """
    count = weight.parameters
    columns = math.prod(weight.shape[1:])
    size = weight.size_bytes + count + 8 * count + 6 * 4 * min(count, 2**22)
    if fmt.rank:
        size += 12 * count + 16 * min(weight.shape[0], columns) ** 2
    if calibrated:
        positions = math.prod(weight.shape[2:])
        blocks = block_sizes(columns, positions, Limits().columns)
        if fmt.hadamard:
            blocks = joined_sizes(blocks, positions * block_size(weight.shape[1]))
        size += 20 * count + 16 * sum(block**2 for block in blocks)
    return size


def _quantize(
    part: Component, layer: str, weight: torch.Tensor, fmt: QuantFormat, rounding: str, record: Record
) -> QuantizedTensor:
    """The layer's weight in `fmt`; its error goes into the record. UserError for a weight with NaN or Inf."""
    import torch

    name = f"{layer}.weight"
    statistics = part.statistics.get(layer)
    try:
        tensor = quantize_weight(weight, fmt, known_roundings()[rounding](), statistics)
    except ValueError as error:
        raise UserError(f"{part.spec.name}.{name}: {error}; the source's weights are broken") from None
    stored_bytes = sum(spec.size_bytes for spec in fmt.stored(part.spec.tensors[name]).values())
    record.layers[layer] = {
        "format": fmt.label,
        "rounding": rounding,
        "bits_per_weight": 8 * stored_bytes / weight.numel(),
        "weight_sqnr_db": _weight_sqnr_db(weight, tensor),
    }
    if statistics is not None:
        record.layers[layer]["output_sqnr_db"] = output_sqnr_db(weight, restored(tensor, torch.float32), statistics)
    return tensor


def _weight_sqnr_db(weight: torch.Tensor, tensor: QuantizedTensor) -> float:
    import torch

    if tensor.format.library != "sdcompress" or tensor.format.hadamard or tensor.palette is not None:
        return sqnr_db(weight, restored(tensor, torch.float32))
    return rounding_sqnr_db(weight, tensor)
