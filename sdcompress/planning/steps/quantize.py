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
from sdcompress.errors import Problem, ProblemList, UserError
from sdcompress.families.registry import architecture_of
from sdcompress.files.manifest import LayerStatus
from sdcompress.planning.layer_formats import (
    Choice,
    FormatSettings,
    Patterns,
    choose,
    is_grouped,
    unmatched_patterns,
)
from sdcompress.planning.step_cost import cost_note
from sdcompress.planning.steps import LayerOutcome, Planned, Stage, Step
from sdcompress.quant.compose import quantize_weight, restored
from sdcompress.quant.corrections.bias import corrected_bias
from sdcompress.quant.corrections.hadamard import block_size, joined_sizes
from sdcompress.quant.error import output_sqnr_db, rounding_sqnr_db, sqnr_db
from sdcompress.quant.registry import from_label, known_roundings
from sdcompress.quant.statistics import Limits, block_sizes
from sdcompress.sources.layer_patterns import first_match
from sdcompress.sources.spec import CONVOLUTIONS, ComponentSpec, Layer, TensorSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantFormat, QuantizedTensor


class Quantize(FormatSettings, Step):
    """Store the weights of layers in few bits.

    Patterns are names of modules with `*`. A pattern also matches every module inside the one that it names.
    weighted-search, gptq and bias_correction are calibrated on what goes into the layers while pictures are drawn.

    Examples:
        quantize: {format: int4, group_size: 64, rounding: gptq}
    """

    kind = "quantize"
    stage = Stage.QUANTIZE
    activations: Literal["int8"] | None = Field(
        default=None,
        description="also round the inputs of layers: for ONNX in calibrated ranges, in torch as they run, where only "
        "linear layers can",
    )
    activations_exclude: Patterns = Field(default=(), description="patterns of layers whose inputs are not rounded")

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        choices = choose(self, spec, target)
        static = self._layers_with_ranges(choices, spec, target)
        dynamic = sorted(self._dynamic_layers(choices, spec, target))
        calibrated = self._calibrated_layers(choices, spec)
        chosen = {choice.layer.name: choice.format for choice in choices if choice.format is not None}
        packaged = package_specs(spec, chosen, target)
        for key, layers in (("activations", static), (DYNAMIC, dynamic)):
            if layers:
                quantization = {**packaged.config["quantization_config"], key: layers}
                packaged = packaged.replace(config={**packaged.config, "quantization_config": quantization})
        working = [
            _working_bytes(spec.tensors[f"{layer}.weight"], fmt, layer in calibrated) for layer, fmt in chosen.items()
        ]
        notes = []
        if static:
            notes.append(f"activations in 8 bits: {len(static)} layers, calibrated ranges")
        overflowing = [name for name in static if not chosen[name].sums_fit_16_bits]
        if overflowing:
            notes.append(
                f"x86 processors without VNNI (AVX2 alone) add 8-bit products in 16 bits, which sums of "
                f"{len(overflowing)} of these layers may overflow; format: int8-unsaturated stays within them"
            )
        if dynamic:
            notes.append(
                f"activations in 8 bits: {len(dynamic)} linear layers, rounded as they run, a scale for each token"
            )
        if calibrated:
            notes.append(f"calibrated on what goes into them: {len(calibrated)} layers")
        if target == "torch" and architecture_of(spec.class_name).role == "denoiser":
            # An embedding looks up rows, so it does not unpack its weight at each step.
            unpacked = [choice.layer.name for choice in choices if choice.format and choice.layer.kind != "embedding"]
            note = cost_note((chosen[name], name in dynamic) for name in unpacked)
            notes += [] if note is None else [note]
        return Planned(
            packaged,
            layers=tuple(_outcome(choice) for choice in choices),
            notes=tuple(notes),
            working_bytes=max(working, default=0),
            requires=frozenset(fmt.library for fmt in chosen.values()) - {"sdcompress"},
            calibrated=calibrated,
            target=target,
        )

    def apply(self, component: Component, planned: Planned) -> Component:
        import torch

        outcomes = {outcome.layer: outcome for outcome in planned.layers if outcome.format}
        formats = {name: from_label(str(one.format)) for name, one in outcomes.items()}
        tensors = component.spec.tensors
        stock = is_stock(component.spec, formats)
        layer_of: dict[str, str] = {}  # stored tensor -> the layer that it is of
        for layer, fmt in formats.items():
            stored = packed_specs(layer, fmt, tensors[f"{layer}.weight"], stock, planned.target)
            layer_of |= dict.fromkeys(stored, layer)
            if layer in planned.calibrated and self.bias_correction and f"{layer}.bias" in tensors:
                layer_of[f"{layer}.bias"] = layer
        dynamic = frozenset(dynamic_layers(planned.spec.config))
        unread: dict[str, torch.Tensor] = {}  # tensors of the layer quantized last that were not read yet

        def read(name: str) -> torch.Tensor:
            if name not in layer_of:
                return component.read(name)
            if name not in unread:
                layer = layer_of[name]
                unread.clear()
                weight = component.read(f"{layer}.weight")
                tensor = _quantize(component, layer, weight, formats[layer], outcomes[layer].rounding)
                if layer in dynamic:
                    component.results.layers[layer]["activations"] = "int8"
                unread.update(package(tensor, layer, tensors[f"{layer}.weight"], stock, planned.target))
                bias = f"{layer}.bias"
                if bias in layer_of:
                    mean = component.statistics[layer].mean
                    restored_weight = restored(tensor, torch.float32)
                    unread[bias] = corrected_bias(component.read(bias), weight, restored_weight, mean)
            return unread.pop(name)

        return component.becomes(planned.spec, read)

    def _calibrated_layers(self, choices: list[Choice], spec: ComponentSpec) -> tuple[str, ...]:
        """Return the layers of whose inputs statistics are needed. UserError where none can be gathered."""
        roundings = known_roundings()
        layers = tuple(
            choice.layer.name
            for choice in choices
            if choice.format is not None
            and choice.layer.kind in {"linear"} | CONVOLUTIONS
            and (roundings[choice.rounding].calibrated or self._corrects_bias(choice.layer, spec))
        )
        if layers and not can_be_calibrated(spec):
            field = "rounding" if roundings[self.rounding].calibrated else "bias_correction"
            what = f"nothing can be calibrated for {spec.name} ({spec.class_name})"
            raise UserError(Problem(field, f"{what}; give it a step of its own, with rounding: search or hqq"))
        return layers

    def _corrects_bias(self, layer: Layer, spec: ComponentSpec) -> bool:
        return self.bias_correction and f"{layer.name}.bias" in spec.tensors and not is_grouped(layer, spec)

    def _layers_with_ranges(self, choices: list[Choice], spec: ComponentSpec, target: str) -> list[str]:
        """Return the layers whose inputs are rounded in calibrated ranges. UserError where that cannot be done."""
        if self.activations is None:
            if self.activations_exclude:
                raise UserError(Problem("activations_exclude", "has no effect without activations: int8"))
            return []
        if target != "onnx":
            return []
        if not can_be_calibrated(spec):
            what = f"no ranges can be calibrated for {spec.name} ({spec.class_name}); leave this out"
            raise UserError(Problem("activations", what))
        if any(tensor.dtype == "F16" for tensor in spec.tensors.values()):
            what = f"8-bit kernels give float32, and {spec.name} is in float16"
            raise UserError(Problem("activations", f"{what}; put `cast: {{dtype: float32}}` before this step"))
        able = [
            choice.layer.name
            for choice in choices
            if choice.format is not None
            and choice.format.bits == 8
            and choice.format.group_size is None
            and choice.layer.kind in {"linear"} | CONVOLUTIONS
        ]
        return self._not_excluded(able, "linear layers and convolutions", spec)

    def _dynamic_layers(self, choices: list[Choice], spec: ComponentSpec, target: str) -> list[str]:
        """Return the layers that round their inputs as they run, in torch. UserError where there are none."""
        if self.activations is None or target != "torch":
            return []
        able = [
            choice.layer.name
            for choice in choices
            if choice.format is not None and choice.layer.kind == "linear" and rounds_inputs(choice.format)
        ]
        return self._not_excluded(able, "linear layers", spec)

    def _not_excluded(self, able: list[str], kinds: str, spec: ComponentSpec) -> list[str]:
        """Return those of the layers that can round their inputs that `activations_exclude` does not match."""
        if not able:
            what = f"need 8-bit weights in {kinds} without group_size, and {spec.name} has none"
            raise UserError(Problem("activations", f"{what}; leave this out, or use format: int8"))
        ProblemList(unmatched_patterns("activations_exclude", self.activations_exclude, able, spec)).raise_any()
        return [name for name in able if not first_match(self.activations_exclude, name)]


def _outcome(choice: Choice) -> LayerOutcome:
    layer, fmt = choice.layer, choice.format
    if fmt is None:
        return LayerOutcome(layer.name, layer.kind, layer.parameters, LayerStatus.KEPT, reason=choice.reason)
    return LayerOutcome(
        layer.name, layer.kind, layer.parameters, LayerStatus.QUANTIZED, fmt.label, rounding=choice.rounding
    )


def _working_bytes(weight: TensorSpec, fmt: QuantFormat, calibrated: bool) -> int:
    """Return the bytes held while one weight is quantized.

    They are the weight, its codes, two copies in float32 for its error, and chunks.
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
    component: Component, layer: str, weight: torch.Tensor, fmt: QuantFormat, rounding: str
) -> QuantizedTensor:
    """Return the layer's weight in the format, and keep its error in the component's results.

    Raises:
        UserError: the weight has NaN or infinite values.
    """
    import torch

    name = f"{layer}.weight"
    statistics = component.statistics.get(layer)
    try:
        tensor = quantize_weight(weight, fmt, known_roundings()[rounding](), statistics)
    except ValueError as error:
        raise UserError(f"{component.spec.name}.{name}: {error}; the source's weights are broken") from None
    stored_bytes = sum(spec.size_bytes for spec in fmt.stored(component.spec.tensors[name]).values())
    result = {
        "format": fmt.label,
        "rounding": rounding,
        "bits_per_weight": 8 * stored_bytes / weight.numel(),
        "weight_sqnr_db": _weight_sqnr_db(weight, tensor),
    }
    if statistics is not None:
        result["output_sqnr_db"] = output_sqnr_db(weight, restored(tensor, torch.float32), statistics)
    component.results.layers[layer] = result
    return tensor


def _weight_sqnr_db(weight: torch.Tensor, tensor: QuantizedTensor) -> float:
    import torch

    if tensor.format.library != "sdcompress" or tensor.format.hadamard or tensor.palette is not None:
        return sqnr_db(weight, restored(tensor, torch.float32))
    return rounding_sqnr_db(weight, tensor)
