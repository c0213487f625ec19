"""Input statistics of layers, gathered with hooks while pictures are drawn, and kept so that a walk can be resumed."""

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
from sdcompress.backends.torch.trajectories import Advance, Observer, Outputs, Walk, check_walk
from sdcompress.calibration.settings import Calibration
from sdcompress.errors import SourceError
from sdcompress.quant.statistics import LayerStatistics, Limits, MomentAccumulator, block_sizes, fitting_limit
from sdcompress.sources.source import Source

CHECKPOINT_S = 30.0  # at least, from one time that progress is saved to the next
_CHECKPOINT_SHARE = 20  # of the time since the last one, one part may go into saving

Accumulators = dict[str, MomentAccumulator]  # layer -> its sums


@dataclass
class Progress:
    """How far a component has come: what it made of the finished prompts, and the state of its layers' accumulators."""

    outputs: Sequence[Outputs] = ()
    states: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)


class Keeper(Protocol):
    """Where what was gathered goes to."""

    def load(self, component: str) -> Progress:
        """The progress that was saved last; empty where there is none."""

    def save(self, component: str, progress: Progress) -> None:
        """Takes the place of the progress saved before."""

    def keep(self, component: str, accumulators: Accumulators) -> None:
        """All prompts went through the component; it may empty `accumulators`."""


def gather_statistics(
    source: Source,
    wanted: Mapping[str, Sequence[str]],
    calibration: Calibration,
    advance: Advance,
    device: str = "auto",
    limits: Limits | None = None,
) -> dict[str, dict[str, LayerStatistics]]:
    """Component -> layer -> statistics of its input, over the trajectories that `calibration` describes, in memory.

    wanted: component -> names of Conv2d or Linear layers, as files call them. `advance` hears the component, how many
    runs are done and how many there are, as with `observe_activations`. Raises SourceError for pipelines and layers
    that this cannot be done with, and for values that are not finite.
    """
    memory = _Memory()
    gather_into(memory, source, wanted, calibration, advance, device, limits)
    return memory.statistics


def gather_into(
    keeper: Keeper,
    source: Source,
    wanted: Mapping[str, Sequence[str]],
    calibration: Calibration,
    advance: Advance,
    device: str = "auto",
    limits: Limits | None = None,
) -> None:
    """Gives `keeper` the statistics that `gather_statistics` gathers, one component after the other.

    It goes on after the last prompt that the keeper knows of, to the same statistics bit for bit.
    """
    check_walk(source, wanted, "input statistics")
    if any(wanted.values()):
        observer = MomentObserver(wanted, limits or Limits(), keeper)
        Walk(source, wanted, calibration, advance, device, observer).run()


class MomentObserver(Observer):
    """Adds up means and moments of the wanted layers' inputs; accumulators of one component are in memory at a time."""

    def __init__(self, wanted: Mapping[str, Sequence[str]], limits: Limits, keeper: Keeper):
        self._wanted, self._limits, self._keeper = wanted, limits, keeper
        self._due_s = 0.0  # when progress is saved next, by the monotonic clock
        self._accumulators: Accumulators = {}
        self._states: Mapping[str, Mapping[str, torch.Tensor]] = {}
        self._outputs: Sequence[Outputs] = ()

    def resume(self, component: str) -> list[Outputs]:
        """What the component made of the prompts that count as finished: for which the layers' states are there too."""
        progress = self._keeper.load(component)
        known = all(layer in progress.states for layer in self._wanted.get(component, ()))
        self._outputs, self._states = (progress.outputs, progress.states) if known else ((), {})
        return list(self._outputs)

    @contextmanager
    def watch(self, component: str, model: nn.Module, runs: int) -> Iterator[None]:
        """Watches the component's layers while in the context, and passes on what was seen at its end."""
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
                adder = _adder(f"{component}.{name}", self._accumulators[name], -(-self._limits.rows // runs))
                hooks.append(layer.register_forward_pre_hook(adder))
            yield
        finally:
            for handle in hooks:
                handle.remove()
        self._pass_on(component)

    def finish(self, component: str, outputs: Sequence[Outputs]) -> None:
        """Saves the progress if it is time to."""
        self._outputs = outputs
        for accumulator in self._accumulators.values():
            accumulator.flush()  # after every prompt, so that the sums are the same wherever a walk was resumed
        if (start_s := time.monotonic()) >= self._due_s:
            states = {name: accumulator.state_dict() for name, accumulator in self._accumulators.items()}
            self._keeper.save(component, Progress(outputs, states))
            end_s = time.monotonic()
            self._due_s = end_s + max(CHECKPOINT_S, _CHECKPOINT_SHARE * (end_s - start_s))

    def _pass_on(self, component: str) -> None:
        accumulators, self._accumulators = self._accumulators, {}
        idle = [name for name, accumulator in accumulators.items() if not accumulator.calls]
        if idle:
            raise SourceError(
                f"{component}.{idle[0]}: drawing pictures never runs it; leave it out of what is calibrated"
            )
        if accumulators:
            self._keeper.keep(component, accumulators)
        self._keeper.save(component, Progress(self._outputs))


class _Memory:
    """Keeps the statistics of all components in memory, and no progress."""

    def __init__(self) -> None:
        self.statistics: dict[str, dict[str, LayerStatistics]] = {}

    def load(self, component: str) -> Progress:
        return Progress()

    def save(self, component: str, progress: Progress) -> None:
        pass

    def keep(self, component: str, accumulators: Accumulators) -> None:
        self.statistics[component] = {}
        while accumulators:  # each makes room for the next
            name = next(iter(accumulators))
            self.statistics[component][name] = finished(accumulators.pop(name), component, name)


def finished(accumulator: MomentAccumulator, component: str, layer: str) -> LayerStatistics:
    """The accumulator's statistics. SourceError where they do not fit float32."""
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
    """Columns of `weight.flatten(1)`, and how many of them belong to one input channel."""
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
    where: str, accumulator: MomentAccumulator, limit: int
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        x = inputs[0]
        rows = choose_rows(count_rows(layer, x), limit, accumulator.calls)
        try:
            accumulator.add(take_rows(layer, x, rows))
        except ValueError as error:
            raise SourceError(f"{where}: in its input {error}; the source's weights are broken") from None

    return add
