"""How much a denoiser's output changes without each of its parts, measured on steps of calibration trajectories."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sdcompress.backends.torch.pruned_modules import bypass
from sdcompress.backends.torch.trajectories import CalibrationRun, Observer, check_calibration
from sdcompress.calibration.settings import Calibration, choose_prompts
from sdcompress.errors import SourceError
from sdcompress.progress import Listener, silent
from sdcompress.sources.source import Source

SAMPLES = 8  # steps on which each part is left out in turn; of different prompts, as far as there are so many
_GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of which, modulo 1, spread evenly however many there are


def measure_units(
    source: Source, component: str, units: Sequence[str], calibration: Calibration, listener: Listener = silent
) -> dict[str, float]:
    """Return unit -> mean over sampled steps of |e' - e|^2 / |e|^2.

    e and e' are the denoiser's outputs with and without the unit, on trajectories of the whole denoiser.

    Raises:
        SourceError: the pipeline cannot be calibrated, or an output is NaN or infinite.
    """
    wanted = {component: tuple(units)}
    check_calibration(source, wanted, "sensitivities of parts")
    observer = _Bypasser(component, units, len(choose_prompts(calibration, source).prompts))
    CalibrationRun(source, wanted, calibration, listener, "auto", observer, "measuring").run()
    broken = [unit for unit, errors in observer.errors.items() if not all(map(math.isfinite, errors))]
    if broken:
        raise SourceError(f"{component}: its output is NaN or infinite without {broken[0]}; the weights are broken")
    return {unit: sum(errors) / len(errors) for unit, errors in observer.errors.items()}


class _Bypasser(Observer):
    """Runs sampled steps again without one unit at a time."""

    def __init__(self, component: str, units: Sequence[str], prompts: int):
        self._component = component
        self.errors: dict[str, list[float]] = {unit: [] for unit in units}
        self._prompts = prompts

    @contextmanager
    def observe(self, component: str, model: nn.Module, runs: int) -> Iterator[None]:
        if component != self._component:
            yield
            return
        sampled = sampled_calls(self._prompts, runs // self._prompts)
        calls = 0
        busy = False

        def measure(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            nonlocal calls, busy
            if busy:
                return
            busy = True
            if calls in sampled:
                self._measure(model, arguments, keywords, output[0])
            calls += 1
            busy = False

        handle = model.register_forward_hook(measure, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _measure(self, model: nn.Module, arguments: Any, keywords: dict[str, Any], whole: torch.Tensor) -> None:
        energy = whole.float().square().sum()
        for unit, errors in self.errors.items():
            owner, _, leaf = unit.rpartition(".")
            removed = bypass(model, unit)
            output = model(*arguments, **keywords)[0]
            model.get_submodule(owner).register_module(leaf, removed)
            errors.append(float((output.float() - whole.float()).square().sum() / energy))


def sampled_calls(prompts: int, steps: int) -> frozenset[int]:
    """Return which of a denoiser's calls, `steps` for each prompt, are sampled: SAMPLES, or all if there are fewer."""
    if prompts * steps <= SAMPLES:
        return frozenset(range(prompts * steps))
    calls: set[int] = set()
    place = 0
    while len(calls) < SAMPLES:
        prompt = place % prompts if prompts <= SAMPLES else place * prompts // SAMPLES % prompts
        calls.add(prompt * steps + int((place + 0.5) * _GOLDEN % 1 * steps))
        place += 1
    return frozenset(calls)
