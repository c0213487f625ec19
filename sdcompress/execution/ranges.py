"""Calibrated activation ranges of a plan's layers, and their JSON form for manifests and resumed runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from sdcompress.calibration.observed_layers import histograms_wanted
from sdcompress.planning.plan import Plan, layers_with_ranges
from sdcompress.progress import Listener, silent
from sdcompress.sources.source import Source

if TYPE_CHECKING:
    from sdcompress.calibration.settings import LayerHistograms
    from sdcompress.quant.activations import LayerRanges

Ranges = dict[str, dict[str, "LayerRanges"]]  # component -> layer


def calibrate_ranges(plan: Plan, source: Source, listener: Listener = silent) -> Ranges:
    """Return the ranges of every layer whose activations the plan rounds; {} where there are none.

    Args:
        source: the pipeline that draws the pictures, pruned where the plan prunes.

    Raises:
        SourceError: activations are NaN or infinite.
    """
    layers = layers_with_ranges(plan.steps)
    if not layers:
        return {}
    from sdcompress.backends.torch.observers import observe_activations

    wanted = {name: histograms_wanted(source.components[name], each) for name, each in layers.items()}
    found = observe_activations(source, wanted, plan.recipe.calibration, listener)
    return {
        component: {layer: _ranges_of(histograms, plan) for layer, histograms in layers.items()}
        for component, layers in found.items()
    }


def dump_ranges(ranges: Ranges) -> dict[str, Any]:
    """Return the ranges as JSON."""
    return {component: {layer: asdict(each) for layer, each in layers.items()} for component, layers in ranges.items()}


def parse_ranges(value: dict[str, Any]) -> Ranges:
    """Return the ranges that `dump_ranges` gave."""
    from sdcompress.quant.activations import LayerRanges

    return TypeAdapter(dict[str, dict[str, LayerRanges]]).validate_python(value)


def _ranges_of(histograms: LayerHistograms, plan: Plan) -> LayerRanges:
    from sdcompress.quant.activations import LayerRanges, choose_range

    method = plan.recipe.calibration.range
    output, first_token = histograms.output, histograms.first_token
    return LayerRanges(
        choose_range(histograms.input, method=method),
        None if output is None else choose_range(output, method=method),
        None if first_token is None else choose_range(first_token, method=method),
    )
