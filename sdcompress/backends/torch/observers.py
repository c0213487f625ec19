"""Histograms of the inputs and outputs of layers, gathered with hooks while pictures are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sdcompress.backends.torch.trajectories import CalibrationRun, Observer, check_calibration
from sdcompress.calibration.settings import Calibration, LayerHistograms, WantedHistograms
from sdcompress.errors import SourceError
from sdcompress.progress import Listener, silent
from sdcompress.quant.histogram import Histogram
from sdcompress.sources.source import Source
from sdcompress.sources.tensor_names import name_in_model

Wanted = Mapping[str, Mapping[str, WantedHistograms]]  # component -> layer
Histograms = dict[str, dict[str, LayerHistograms]]


def observe_activations(
    source: Source,
    wanted: Wanted,
    calibration: Calibration,
    listener: Listener = silent,
    device: str = "auto",
) -> Histograms:
    """Return component -> layer -> histograms of its input and output, over the trajectories of `calibration`.

    Histograms count a sample of large tensors; their extremes are those of all values. Only the wanted components, and
    those that lead to them, are run.

    Args:
        wanted: component -> Conv2d or Linear layer, as files call it -> the histograms that are wanted.

    Raises:
        SourceError: the pipeline or a layer cannot be calibrated, or values are NaN or infinite.
    """
    check_calibration(source, wanted, "activation ranges")
    if not any(wanted.values()):
        return {}
    observer = HistogramObserver(wanted)
    CalibrationRun(source, wanted, calibration, listener, device, observer).run()
    return observer.histograms


class HistogramObserver(Observer):
    """Fills histograms of the wanted layers' inputs and outputs."""

    def __init__(self, wanted: Wanted):
        self.histograms: Histograms = {}
        self._wanted = wanted

    @contextmanager
    def observe(self, component: str, model: nn.Module, runs: int) -> Iterator[None]:
        """Observe the component's layers while in the context; SourceError if one of them has not run by the end."""
        layers = self._wanted.get(component, {})
        observed: dict[str, LayerHistograms] = {}
        hooks = []
        try:
            for name, wanted in layers.items():
                where = f"{component}.{name}"
                layer = find_layer(model, component, name)
                first_token = Histogram() if wanted.first_token else None
                output = Histogram() if wanted.output else None
                observed[name] = LayerHistograms(Histogram(), first_token, output)
                hooks.append(layer.register_forward_pre_hook(_input_observer(where, observed[name])))
                if output is not None:
                    hooks.append(layer.register_forward_hook(_output_observer(where, output)))
            yield
        finally:
            for handle in hooks:
                handle.remove()
        idle = [layer for layer, seen in observed.items() if not seen.input.count]
        if idle:
            raise SourceError(f"{component}.{idle[0]}: drawing pictures never runs it; leave its activations in float")
        if layers:
            self.histograms[component] = observed


def find_layer(model: nn.Module, component: str, name: str) -> nn.Linear | nn.Conv2d:
    """Return the module that files call `name`.

    Raises:
        SourceError: it is no linear layer or two-dimensional convolution.
    """
    place = name_in_model(model, name)
    layer = model.get_submodule(place) if place else None
    if isinstance(layer, nn.Linear | nn.Conv2d):
        return layer
    raise SourceError(f"{component}.{name}: is no linear layer or convolution, so nothing is gathered of its input")


def _input_observer(name: str, histograms: LayerHistograms) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def observe(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        if histograms.first_token is not None:
            _add(histograms.first_token, x[:, :1], name, "input")
            x = x[:, 1:]
        _add(histograms.input, x, name, "input")

    return observe


def _output_observer(name: str, histogram: Histogram) -> Callable[[nn.Module, Any, torch.Tensor], None]:
    def observe(_: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        _add(histogram, output, name, "output")

    return observe


def _add(histogram: Histogram, values: torch.Tensor, name: str, what: str) -> None:
    try:
        histogram.add(values)
    except ValueError as error:
        raise SourceError(f"{name}: in its {what} {error}; the source's weights are broken") from None
