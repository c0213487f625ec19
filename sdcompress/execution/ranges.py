"""Calibrated activation ranges of a plan's layers: gathered from denoising trajectories, kept as JSON for resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sdcompress.calibration.observed_layers import watches
from sdcompress.planning.plan import Plan, observed_of
from sdcompress.sources.source import Source

if TYPE_CHECKING:
    from sdcompress.calibration.settings import Observed
    from sdcompress.quant.activations import ActivationRange, Histogram, LayerRanges

Ranges = dict[str, dict[str, "LayerRanges"]]  # component -> layer


def calibrate(plan: Plan, advance: Callable[[str, int, int], None], source: Source | None = None) -> Ranges:
    """The ranges of every layer whose activations the plan rounds; {} when there is none.

    source: what pictures are drawn with, the plan's own if None; with its pruning done, where there is any.
    `advance` hears the component, the runs done and how many there are. Raises SourceError for weights that give NaN
    or infinite activations.
    """
    observed = observed_of(plan.steps)
    if not observed:
        return {}
    from sdcompress.backends.torch.observers import observe_activations

    source = source or plan.source
    wanted = {name: watches(source.components[name], layers) for name, layers in observed.items()}
    seen = observe_activations(source, wanted, plan.recipe.calibration, advance)
    return {
        component: {layer: _ranges_of(histograms, plan) for layer, histograms in layers.items()}
        for component, layers in seen.items()
    }


def dump_ranges(ranges: Ranges) -> dict[str, Any]:
    """The ranges as JSON."""
    return {component: {layer: asdict(each) for layer, each in layers.items()} for component, layers in ranges.items()}


def parse_ranges(value: dict[str, Any]) -> Ranges:
    """The ranges that `dump_ranges` wrote."""
    from sdcompress.quant.activations import ActivationRange, LayerRanges

    def layer_ranges(entry: dict[str, Any]) -> LayerRanges:
        found = {name: ActivationRange(**bounds) for name, bounds in entry.items() if bounds is not None}
        return LayerRanges(**found)

    return {
        component: {layer: layer_ranges(entry) for layer, entry in layers.items()}
        for component, layers in value.items()
    }


def _ranges_of(observed: Observed, plan: Plan) -> LayerRanges:
    from sdcompress.quant.activations import LayerRanges, choose_range

    def chosen(histogram: Histogram | None) -> ActivationRange | None:
        return None if histogram is None else choose_range(histogram, method=plan.recipe.calibration.range)

    whole = chosen(observed.inputs[0])
    assert whole is not None
    return LayerRanges(whole, chosen(observed.output), chosen(observed.first_token))
