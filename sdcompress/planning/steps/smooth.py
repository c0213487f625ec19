"""smooth: scale the input channels of layers where something before them takes the inverse scale, at no cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from sdcompress.backends.component import Component
from sdcompress.calibration.observed_layers import can_be_calibrated
from sdcompress.errors import ProblemList
from sdcompress.families.foldable import Fold, folds
from sdcompress.planning.layer_formats import GroupSize, ScaleBits, wanted_format
from sdcompress.planning.steps import Planned, Stage, Step
from sdcompress.quant.smoothing import scaled, scaled_statistics, scales_for
from sdcompress.quant.statistics import LayerStatistics
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantFormat


class Smooth(Step):
    """Scale the input channels of layers for the format that `quantize` will store them in (AWQ, calibrated).

    Channels with large inputs get larger weights, whose relative rounding error is smaller; the exponent is searched
    for each layer. Only layers are scaled for which a norm or a linear layer before them takes the inverse scale, so
    that the component computes the same (AWQ, arXiv:2306.00978; SmoothQuant, arXiv:2211.10438).

    Examples:
        smooth: {format: uint4, group_size: 64}
    """

    kind = "smooth"
    stage = Stage.SMOOTH
    format: str = Field(description="the format that the scaled layers will get")
    group_size: GroupSize = None
    scale_bits: ScaleBits = 16

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        problems = ProblemList()
        with problems.collect():
            self._format_for(target)
        found = folds(spec)
        if not found or not can_be_calibrated(spec):
            problems.add("", f"{spec.name} ({spec.class_name}) has no place where scales could go; leave this step out")
        problems.raise_any()
        consumers = tuple(dict.fromkeys(layer for fold in found for layer in fold.consumers))
        notes = (
            f"input channels scaled at {len(found)} places, for {len(consumers)} layers",
            "a LoRA made for the original does not fit scaled layers; fuse it before",
        )
        largest = 40 * max(spec.tensors[f"{layer}.weight"].parameters for layer in consumers)
        return Planned(spec, notes=notes, working_bytes=largest, calibrated=consumers, target=target)

    def apply(self, component: Component, planned: Planned) -> Component:
        by_tensor: dict[str, list[Fold]] = {}
        for fold in folds(component.spec):
            for name in (*(name for name, _ in fold.producers), *(f"{layer}.weight" for layer in fold.consumers)):
                by_tensor.setdefault(name, []).append(fold)
        scales = _Scales(component, self._format_for(planned.target))

        def read(name: str) -> torch.Tensor:
            tensor = component.read(name)
            for fold in by_tensor.get(name, ()):
                tensor = scaled(name, tensor, fold, scales.of(fold))
            return tensor

        statistics = _ScaledStatistics(component.statistics, by_tensor, scales)
        return replace(component.becomes(planned.spec, read), statistics=statistics)

    def _format_for(self, target: str) -> QuantFormat:
        return wanted_format(self.format, self.group_size, target, scale_bits=self.scale_bits)


class _Scales:
    """The scales of a component's folds, each searched when it is first asked for, and kept."""

    def __init__(self, component: Component, fmt: QuantFormat):
        self._component, self._format = component, fmt
        self._found: dict[Fold, torch.Tensor] = {}

    def of(self, fold: Fold) -> torch.Tensor:
        """Return the scales of the fold's channels [channels]."""
        if fold not in self._found:
            weights = {layer: self._component.read(f"{layer}.weight") for layer in fold.consumers}
            self._found[fold] = scales_for(fold, weights, self._component.statistics, self._format)
        return self._found[fold]


class _ScaledStatistics(Mapping[str, LayerStatistics]):
    """Statistics of the layers' inputs after scaling, computed when they are asked for."""

    def __init__(self, before: Mapping[str, LayerStatistics], by_tensor: Mapping[str, list[Fold]], scales: _Scales):
        self._before, self._by_tensor, self._scales = before, by_tensor, scales

    def __getitem__(self, layer: str) -> LayerStatistics:
        statistics = self._before[layer]
        for fold in self._by_tensor.get(f"{layer}.weight", ()):
            if layer in fold.consumers:
                statistics = scaled_statistics(statistics, self._scales.of(fold))
        return statistics

    def __iter__(self) -> Iterator[str]:
        return iter(self._before)

    def __len__(self) -> int:
        return len(self._before)
