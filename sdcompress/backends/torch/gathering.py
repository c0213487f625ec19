"""Input statistics of layers, gathered with hooks while pictures are drawn, and kept so that a run can be resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from sdcompress.backends.torch.layer_rows import choose_rows, count_rows, take_rows
from sdcompress.backends.torch.observers import find_layer
from sdcompress.backends.torch.trajectories import CalibrationRun, Observer, Outputs, check_calibration
from sdcompress.calibration.settings import Calibration
from sdcompress.errors import SourceError
from sdcompress.progress import Listener, silent
from sdcompress.quant.statistics import LayerStatistics, Limits, MomentAccumulator, block_sizes, fitting_limit
from sdcompress.sources.source import Source

CHECKPOINT_S = 30.0  # shortest time between checkpoints
_CHECKPOINT_SHARE = 20  # saving takes at most one part of so many of the time

Accumulators = dict[str, MomentAccumulator]  # layer -> its sums


@dataclass
class Progress:
    """Progress of a component: its outputs for the finished prompts, and the state of its layers' accumulators."""

    outputs: Sequence[Outputs] = ()
    states: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)


class StatisticsStore(Protocol):
    """Where statistics are written, and the progress of gathering them."""

    def load_progress(self, component: str) -> Progress:
        """Return the progress that was saved last; empty where there is none."""

    def save_progress(self, component: str, progress: Progress) -> None:
        """Save the progress in place of what was saved before."""

    def save_statistics(self, component: str, accumulators: Accumulators) -> None:
        """Save the component's statistics, after all prompts."""


def gather_statistics(
    store: StatisticsStore,
    source: Source,
    wanted: Mapping[str, Sequence[str]],
    calibration: Calibration,
    listener: Listener = silent,
    device: str = "auto",
    limits: Limits | None = None,
) -> None:
    """Save input statistics of the wanted layers, over the trajectories of `calibration`, one component after another.

    A resumed run starts after the last prompt whose progress the store has, and gives the same statistics bit for bit.

    Args:
        wanted: component -> names of Conv2d or Linear layers, as files call them.

    Raises:
        SourceError: the pipeline or a layer cannot be calibrated, or values are NaN or infinite.
    """
    check_calibration(source, wanted, "input statistics")
    observer = MomentObserver(wanted, limits or Limits(), store)
    CalibrationRun(source, wanted, calibration, listener, device, observer).run()


class MomentObserver(Observer):
    """Sums up means and moments of the wanted layers' inputs. It holds the sums of one component at a time."""

    def __init__(self, wanted: Mapping[str, Sequence[str]], limits: Limits, store: StatisticsStore):
        self._wanted, self._limits, self._store = wanted, limits, store
        self._due_s = 0.0  # when progress is saved next, on the monotonic clock
        self._accumulators: Accumulators = {}
        self._states: Mapping[str, Mapping[str, torch.Tensor]] = {}
        self._outputs: Sequence[Outputs] = ()

    def resume(self, component: str) -> list[Outputs]:
        """Return the outputs for the finished prompts, if the states of all layers are there too."""
        progress = self._store.load_progress(component)
        known = all(layer in progress.states for layer in self._wanted.get(component, ()))
        self._outputs, self._states = (progress.outputs, progress.states) if known else ((), {})
        return list(self._outputs)

    @contextmanager
    def observe(self, component: str, model: nn.Module, runs: int) -> Iterator[None]:
        """Observe the component's layers while in the context, and save their statistics at its end."""
        wanted = self._wanted.get(component, ())
        layers = {name: find_layer(model, component, name) for name in wanted}
        device = next(model.parameters()).device
        self._accumulators = _accumulators_of(layers, component, self._limits)
        for name, accumulator in self._accumulators.items():
            accumulator.load_state_dict(self._states.get(name, {}), device)
        self._states = {}
        self._due_s = time.monotonic() + CHECKPOINT_S
        hooks = []
        try:
            for name, layer in layers.items():
                adder = _adder(f"{component}.{name}", layer, self._accumulators[name], -(-self._limits.rows // runs))
                hooks.append(layer.register_forward_pre_hook(adder))
            yield
        finally:
            for handle in hooks:
                handle.remove()
        self._save_statistics(component)

    def finish_prompt(self, component: str, outputs: Sequence[Outputs]) -> None:
        """Save the progress if it is time to."""
        self._outputs = outputs
        for accumulator in self._accumulators.values():
            accumulator.flush()  # after every prompt, so that the sums are the same wherever a run was resumed
        if (start_s := time.monotonic()) >= self._due_s:
            states = {name: accumulator.state_dict() for name, accumulator in self._accumulators.items()}
            self._store.save_progress(component, Progress(outputs, states))
            end_s = time.monotonic()
            self._due_s = end_s + max(CHECKPOINT_S, _CHECKPOINT_SHARE * (end_s - start_s))

    def _save_statistics(self, component: str) -> None:
        accumulators, self._accumulators = self._accumulators, {}
        idle = [name for name, accumulator in accumulators.items() if not accumulator.calls]
        if idle:
            raise SourceError(
                f"{component}.{idle[0]}: drawing pictures never runs it; leave it out of what is calibrated"
            )
        if accumulators:
            self._store.save_statistics(component, accumulators)
        self._store.save_progress(component, Progress(self._outputs))


def statistics_of(accumulator: MomentAccumulator, component: str, layer: str) -> LayerStatistics:
    """Return the accumulator's statistics. SourceError where they do not fit float32."""
    try:
        return accumulator.statistics()
    except ValueError as error:
        raise SourceError(f"{component}.{layer}: in its input {error}; the source's weights are broken") from None


def _accumulators_of(
    layers: Mapping[str, nn.Linear | nn.Conv2d], component: str, limits: Limits
) -> dict[str, MomentAccumulator]:
    shapes = {name: _columns(layer, f"{component}.{name}") for name, layer in layers.items()}
    limit = fitting_limit(shapes.values(), limits)
    return {name: MomentAccumulator(block_sizes(*shape, limit)) for name, shape in shapes.items()}


def _columns(layer: nn.Linear | nn.Conv2d, where: str) -> tuple[int, int]:
    """Return the number of columns of `weight.flatten(1)`, and how many of them belong to one input channel."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, 1
    if layer.groups != 1 or layer.padding_mode != "zeros":
        raise SourceError(
            f"{where}: is a convolution in {layer.groups} groups with padding of {layer.padding_mode}, of whose input "
            f"no statistics can be gathered; leave it out of what is calibrated"
        )
    positions = math.prod(layer.kernel_size)
    return layer.in_channels * positions, positions


def _adder(
    where: str, layer: nn.Linear | nn.Conv2d, accumulator: MomentAccumulator, limit: int
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        rows = choose_rows(count_rows(layer, x), limit, accumulator.calls)
        try:
            accumulator.add(take_rows(layer, x, rows))
        except ValueError as error:
            raise SourceError(f"{where}: in its input {error}; the source's weights are broken") from None

    return add
