"""Trials: pictures drawn with some layers rounded in memory, against those of the original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sdcompress.backends.torch.whole_pipeline import WholePipeline
from sdcompress.calibration.settings import Calibration
from sdcompress.progress import Listener, ProgressEvent, silent
from sdcompress.quant.compose import restored
from sdcompress.quant.corrections.bias import corrected_bias
from sdcompress.quant.statistics import LayerStatistics
from sdcompress.searching.scores import rounded
from sdcompress.searching.space import KEPT
from sdcompress.sources.source import Source

Allocation = Mapping[str, str]  # component:layer -> label of a format
Statistics = Mapping[str, Mapping[str, LayerStatistics]]


class Trials:
    """A pipeline in memory, in which layers are rounded for a trial and restored after it.

    Args:
        calibration: prompts, seeds and sampler of the pictures.
        statistics: of the layers' inputs, for bias correction.
    """

    def __init__(
        self,
        source: Source,
        calibration: Calibration,
        statistics: Statistics,
        listener: Listener = silent,
        device: str = "auto",
    ):
        self._statistics, self._listener = statistics, listener
        self._whole = WholePipeline(source, calibration, device)
        self._originals = [self._draw(index) for index in range(self._whole.count)]

    def measure(self, allocation: Allocation, note: str = "") -> list[float]:
        """Return the mean squared change of each picture, in units of its range [0, 1] squared."""
        kept: list[tuple[Any, torch.Tensor, torch.Tensor | None]] = []
        try:
            for key, label in allocation.items():
                component, _, layer = key.partition(":")
                if label != KEPT and component in self._whole.models:
                    kept.append(self._round(component, layer, label))
            changes, count = [], self._whole.count
            for index in range(count):
                changes.append(float((self._draw(index) - self._originals[index]).square().mean()))
                self._listener(ProgressEvent("searching", f"trial {note}".strip(), index + 1, count, "pictures"))
            return changes
        finally:
            for module, weight, bias in kept:
                module.weight.data = weight
                if bias is not None:
                    module.bias.data = bias

    def _round(self, component: str, layer: str, label: str) -> tuple[Any, torch.Tensor, torch.Tensor | None]:
        module: Any = self._whole.layer(component, layer)
        weight, bias = module.weight.data, getattr(module, "bias", None)
        approximation = restored(rounded(weight, label), torch.float32)
        module.weight.data = approximation.to(weight)
        inputs = self._statistics.get(component, {}).get(layer)
        if bias is None or inputs is None:
            return module, weight, None
        before = bias.data
        bias.data = corrected_bias(before, weight, approximation, inputs.mean.to(weight.device))
        return module, weight, before

    @torch.no_grad()
    def _draw(self, index: int) -> torch.Tensor:
        return self._whole.pipeline(**self._whole.arguments(index)).images.float().cpu()  # type: ignore[no-any-return]
