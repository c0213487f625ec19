"""Histograms of what goes into and out of layers, gathered with hooks while pictures are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sdcompress.backends.torch.trajectories import Advance, Observer, Walk, check_walk
from sdcompress.calibration.settings import Calibration, Observed, Watch
from sdcompress.errors import SourceError
from sdcompress.quant.activations import Histogram
from sdcompress.sources.source import Source
from sdcompress.sources.tensor_names import name_in_model

Wanted = Mapping[str, Mapping[str, Watch]]
Observations = dict[str, dict[str, Observed]]


def observe_activations(
    source: Source,
    wanted: Wanted,
    calibration: Calibration,
    advance: Advance,
    device: str = "auto",
) -> Observations:
    """Component -> layer -> histograms of what goes in and out, over the trajectories that `calibration` describes.

    wanted: component -> Conv2d or Linear layer, as files call it -> what of it is watched. Histograms count a sample
    of large tensors, their extremes are of all values. `advance` hears the component, how many runs are done and how
    many there are: a prompt through a text encoder, a denoising step, a picture decoded or encoded. Only what is
    wanted, and what leads there, is run. Raises SourceError for pipelines and layers that this cannot be done with, and
    for values that are not finite.
    """
    check_walk(source, wanted, "activation ranges")
    if not any(wanted.values()):
        return {}
    observer = HistogramObserver(wanted)
    Walk(source, wanted, calibration, advance, device, observer).run()
    return observer.observations


class HistogramObserver(Observer):
    """Fills histograms of the wanted layers' inputs and outputs."""

    def __init__(self, wanted: Wanted):
        self.observations: Observations = {}
        self._wanted = wanted

    @contextmanager
    def watch(self, component: str, model: nn.Module, runs: int) -> Iterator[None]:
        """Watches the component's layers while in the context; SourceError if one of them has not run by the end."""
        layers = self._wanted.get(component, {})
        observed: dict[str, Observed] = {}
        hooks = []
        try:
            for name, watch in layers.items():
                where = f"{component}.{name}"
                layer = find_layer(model, component, name)
                observed[name] = _empty_histograms(layer, watch, where)
                axis = 1 if isinstance(layer, nn.Conv2d) else -1
                hooks.append(layer.register_forward_pre_hook(_input_observer(where, observed[name], watch, axis)))
                if watch.output:
                    hooks.append(layer.register_forward_hook(_output_observer(where, observed[name])))
            yield
        finally:
            for handle in hooks:
                handle.remove()
        idle = [layer for layer, seen in observed.items() if not seen.inputs[0].count]
        if idle:
            raise SourceError(f"{component}.{idle[0]}: drawing pictures never runs it; leave its activations in float")
        if layers:
            self.observations[component] = observed


def find_layer(model: nn.Module, component: str, name: str) -> nn.Linear | nn.Conv2d:
    """The module that files call `name`. SourceError where it is no linear layer or two-dimensional convolution."""
    living = name_in_model(model, name)
    layer = model.get_submodule(living) if living else None
    if isinstance(layer, nn.Linear | nn.Conv2d):
        return layer
    raise SourceError(f"{component}.{name}: is no linear layer or convolution, so nothing is gathered of its input")


def _empty_histograms(layer: nn.Linear | nn.Conv2d, watch: Watch, where: str) -> Observed:
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    if watch.splits and sum(watch.splits) != channels:
        raise SourceError(f"{where}: has {channels} input channels, which {watch.splits} do not add up to")
    return Observed(
        tuple(Histogram() for _ in watch.splits or (channels,)),
        Histogram() if watch.first_token else None,
        Histogram() if watch.output else None,
    )


def _input_observer(
    name: str, observed: Observed, watch: Watch, axis: int
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def observe(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        if observed.first_token is not None:
            _add(observed.first_token, x[:, :1], name, "input")
            x = x[:, 1:]
        parts = x.split(watch.splits, dim=axis) if watch.splits else (x,)
        for histogram, part in zip(observed.inputs, parts, strict=True):
            _add(histogram, part, name, "input")

    return observe


def _output_observer(name: str, observed: Observed) -> Callable[[nn.Module, Any, torch.Tensor], None]:
    def observe(_: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        assert observed.output is not None
        _add(observed.output, output, name, "output")

    return observe


def _add(histogram: Histogram, values: torch.Tensor, name: str, what: str) -> None:
    try:
        histogram.add(values)
    except ValueError as error:
        raise SourceError(f"{name}: in its {what} {error}; the source's weights are broken") from None
