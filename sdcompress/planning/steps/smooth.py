"""smooth: scale the input channels of layers, at no cost where something before them takes the inverse scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from sdcompress.backends.component import Component
from sdcompress.calibration.observed_layers import can_be_calibrated
from sdcompress.errors import UserError
from sdcompress.families.foldable import Fold, folds
from sdcompress.planning.layer_formats import wanted_format
from sdcompress.planning.steps import Planned, Record, Stage, Step
from sdcompress.quant.corrections.smoothing import scaled, scaled_statistics, scales_for
from sdcompress.quant.registry import known_formats
from sdcompress.quant.statistics import LayerStatistics
from sdcompress.sources.spec import ComponentSpec

if TYPE_CHECKING:
    import torch

    from sdcompress.quant.format import QuantFormat


class Smooth(Step):
    """`smooth: {format: uint4, group_size: 64}`: AWQ's scaling for weights that `quantize` will store in that format.

    Channels that carry large inputs get a finer share of the weights' steps; each layer's share is searched. Only where
    a norm or a linear layer before it takes the inverse, so that the component computes the same (AWQ,
    arXiv:2306.00978; SmoothQuant, arXiv:2211.10438).
    """

    kind = "smooth"
    stage = Stage.SMOOTH
    format: str
    group_size: int | None = Field(default=None, ge=1)
    scale_bits: Literal[8, 16] = 16

    def plan(self, spec: ComponentSpec, target: str) -> Planned:
        problems: list[str] = []
        wanted_format(self, target, "", problems)
        found = folds(spec)
        if not found or not can_be_calibrated(spec):
            problems.append(f"{spec.name} ({spec.class_name}) has no place where scales could go; leave this step out")
        if problems:
            raise UserError(problems)
        consumers = tuple(dict.fromkeys(layer for fold in found for layer in fold.consumers))
        notes = (
            f"input channels scaled at {len(found)} places, for {len(consumers)} layers",
            "a LoRA made for the original does not fit scaled layers; fuse it before",
        )
        largest = 40 * max(spec.tensors[f"{layer}.weight"].parameters for layer in consumers)
        return Planned(spec, notes=notes, working_bytes=largest, calibrated=consumers, target=target)

    def apply(self, part: Component, planned: Planned, record: Record) -> Component:
        fmt = known_formats()[self.format](self.group_size, **self._options())
        by_tensor: dict[str, list[Fold]] = {}
        for fold in folds(part.spec):
            for name in (*(name for name, _ in fold.producers), *(f"{layer}.weight" for layer in fold.consumers)):
                by_tensor.setdefault(name, []).append(fold)
        scales = _Scales(part, fmt)

        def read(name: str) -> torch.Tensor:
            tensor = part.read(name)
            for fold in by_tensor.get(name, ()):
                tensor = scaled(name, tensor, fold, scales.of(fold))
            return tensor

        statistics = _ScaledStatistics(part.statistics, by_tensor, scales)
        return Component(planned.spec, read, statistics)

    def _options(self) -> dict[str, Any]:
        return {} if self.scale_bits == 16 else {"scale_bits": self.scale_bits}


class _Scales:
    """The scales of a component's folds [channels], each searched when it is first asked for, and kept."""

    def __init__(self, part: Component, fmt: QuantFormat):
        self._part, self._format = part, fmt
        self._found: dict[Fold, torch.Tensor] = {}

    def of(self, fold: Fold) -> torch.Tensor:
        if fold not in self._found:
            weights = {layer: self._part.read(f"{layer}.weight") for layer in fold.consumers}
            self._found[fold] = scales_for(fold, weights, self._part.statistics, self._format)
        return self._found[fold]


class _ScaledStatistics(Mapping[str, LayerStatistics]):
    """The statistics of the layers' inputs after scaling, computed when they are asked for."""

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
