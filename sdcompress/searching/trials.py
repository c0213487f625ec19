"""Trials: pictures drawn with some layers rounded in memory, against those of the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sdcompress.backends.torch.source_parts import open_component
from sdcompress.backends.torch.trajectories import BESIDE_THE_DENOISER, COMPONENTS, CalibrationRun
from sdcompress.calibration.input_pictures import PictureFiles, make_pictures, request_pictures
from sdcompress.calibration.settings import Calibration
from sdcompress.progress import Listener, ProgressEvent, silent
from sdcompress.quant.compose import restored
from sdcompress.quant.corrections.bias import corrected_bias
from sdcompress.quant.statistics import LayerStatistics
from sdcompress.searching.scores import rounded
from sdcompress.searching.space import KEPT
from sdcompress.sources.source import Source
from sdcompress.sources.tensor_names import name_in_model

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
        self._source, self._statistics, self._listener = source, statistics, listener
        self._run = CalibrationRun(source, {}, calibration, device=device)
        names = [name for name in (*COMPONENTS, *BESIDE_THE_DENOISER) if name in source.components]
        self._models = {name: open_component(source, name, self._run.device) for name in names}
        self._pipeline = self._run.assemble(**self._models)
        self._originals = [self._draw(index) for index in range(self.count)]

    @property
    def count(self) -> int:
        """Pictures of one trial."""
        return len(self._run.prompts.prompts)

    def measure(self, allocation: Allocation, note: str = "") -> list[float]:
        """Return the mean squared change of each picture, in units of its range [0, 1] squared."""
        kept: list[tuple[Any, torch.Tensor, torch.Tensor | None]] = []
        try:
            for key, label in allocation.items():
                component, _, layer = key.partition(":")
                if label != KEPT and component in self._models:
                    kept.append(self._round(component, layer, label))
            changes = []
            for index in range(self.count):
                changes.append(float((self._draw(index) - self._originals[index]).square().mean()))
                self._listener(ProgressEvent("searching", f"trial {note}".strip(), index + 1, self.count, "pictures"))
            return changes
        finally:
            for module, weight, bias in kept:
                module.weight.data = weight
                if bias is not None:
                    module.bias.data = bias

    def _round(self, component: str, layer: str, label: str) -> tuple[Any, torch.Tensor, torch.Tensor | None]:
        place = name_in_model(self._models[component], layer)
        assert place is not None
        module = self._models[component].get_submodule(place)
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
        run, seed = self._run, self._run.first_seed + index
        request = request_pictures(PictureFiles(), self._source.pipeline_class, index, seed)
        pictures = make_pictures(self._pipeline, request, run.size)
        generator = torch.Generator("cpu").manual_seed(seed)
        arguments = {"prompt": run.prompts.prompts[index], **run.settings, **pictures}
        return self._pipeline(**arguments, generator=generator, output_type="pt").images.float().cpu()


def mean_damage(changes: Sequence[float]) -> float:
    """Return the mean of the pictures' squared changes."""
    return sum(changes) / len(changes)
