"""The damage of every candidate of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from sdcompress.errors import RecipeError
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import load_recipe, shipped_recipes
from sdcompress.progress import Listener, ProgressEvent, silent
from sdcompress.quant.compose import quantize_weight, restored
from sdcompress.quant.registry import from_label, known_roundings
from sdcompress.searching.damage import picture_damage
from sdcompress.searching.result import ShippedRecipe
from sdcompress.searching.space import KEPT, Choices

if TYPE_CHECKING:
    import torch

    from sdcompress.backends.torch.picture_gradients import Drawn
    from sdcompress.quant.statistics import LayerStatistics
    from sdcompress.sources.source import Source

SEARCHED_BITS = 4  # up to which scales are searched; with more bits the nearest codes are as good


def score_layers(
    source: Source,
    choices: Sequence[Choices],
    gradients: Drawn,
    statistics: Mapping[str, Mapping[str, LayerStatistics]],
    listener: Listener = silent,
) -> dict[str, tuple[float, ...]]:
    """Return key of a layer -> damage of each of its candidates, in the picture's mean squared change.

    Layers on which no picture depends have no damage that could be told; they are left out.
    """
    readers = {component: source.reader(component) for component in source.components}
    scores: dict[str, tuple[float, ...]] = {}
    for place, each in enumerate(choices):
        rows = gradients.rows.get(each.component, {}).get(each.layer.name)
        if rows is not None:
            weight = readers[each.component](f"{each.layer.name}.weight")
            inputs = statistics.get(each.component, {}).get(each.layer.name) if each.calibrated else None
            scores[each.key] = tuple(
                0.0 if label == KEPT else score(weight, label, rows, inputs, gradients.pixels, each.has_bias)
                for label in each.labels
            )
        listener(ProgressEvent("searching", "layers", place + 1, len(choices), "steps"))
    return scores


def score_shipped(
    source: Source,
    choices: Sequence[Choices],
    gradients: Drawn,
    statistics: Mapping[str, Mapping[str, LayerStatistics]],
) -> tuple[ShippedRecipe, ...]:
    """Return the shipped recipes of weights alone (casts and formats for torch), with their predicted damage."""
    layers = {
        each.key: each for each in choices if gradients.rows.get(each.component, {}).get(each.layer.name) is not None
    }
    readers = {component: source.reader(component) for component in source.components}

    @cache  # several recipes give a layer the same format
    def damage_of(key: str, label: str, corrected: bool) -> float:
        each = layers[key]
        weight = readers[each.component](f"{each.layer.name}.weight")
        inputs = statistics.get(each.component, {}).get(each.layer.name) if each.calibrated else None
        rows = gradients.rows[each.component][each.layer.name]
        return score(weight, label, rows, inputs, gradients.pixels, corrected)

    found = []
    for name in shipped_recipes():
        recipe = load_recipe(name)
        kinds = {step.kind for steps in recipe.components.values() for step in steps}
        if recipe.target != "torch" or kinds != {"cast", "quantize"}:
            continue
        try:
            plan = make_plan(recipe, source)
        except RecipeError:
            continue  # for other pipelines, or its libraries are missing
        damages: dict[str, float] = {}
        for step in plan.steps:
            for outcome in step.planned.layers:
                each = layers.get(f"{step.component}:{outcome.layer}")
                if each is not None and outcome.format is not None:
                    corrected = each.has_bias and getattr(step.step, "bias_correction", False)
                    damage = damage_of(each.key, outcome.format, corrected)
                    damages[step.component] = damages.get(step.component, 0.0) + damage
        size = sum(spec.weights_bytes for spec in plan.components_after.values())
        if damages:
            found.append(ShippedRecipe(name=name, size_bytes=size, damages=damages))
    return tuple(found)


def score(
    weight: torch.Tensor,
    label: str,
    rows: torch.Tensor,
    inputs: LayerStatistics | None,
    pixels: int,
    bias_corrected: bool,
) -> float:
    """Return the damage of the weight in a format."""
    import torch

    approximation = restored(rounded(weight, label), torch.float32)
    return picture_damage(weight, approximation, rows, inputs, pixels, bias_corrected and inputs is not None)


def rounded(weight: torch.Tensor, label: str):  # type: ignore[no-untyped-def]
    """Return the weight in the format, rounded as scores assume it: searched scales, or the nearest codes."""
    fmt = from_label(label)
    allowed = fmt.roundings is None or "search" in fmt.roundings
    name = "search" if allowed and fmt.bits <= SEARCHED_BITS else "nearest"
    return quantize_weight(weight, fmt, known_roundings()[name](), None)


def weight_errors(
    source: Source, choices: Sequence[Choices], listener: Listener = silent
) -> dict[str, tuple[float, ...]]:
    """Return key of a layer -> relative squared error of its weight in each candidate, times its share of the weights.

    It needs no pictures, and knows nothing of what an error does to them.
    """
    import torch

    readers = {component: source.reader(component) for component in source.components}
    total = sum(each.layer.parameters for each in choices)
    scores: dict[str, tuple[float, ...]] = {}
    for place, each in enumerate(choices):
        if each.measured:
            weight = readers[each.component](f"{each.layer.name}.weight").float()
            energy = max(float(weight.square().sum()), 1e-30)
            share = each.layer.parameters / total
            scores[each.key] = tuple(
                0.0
                if label == KEPT
                else share * float((restored(rounded(weight, label), torch.float32) - weight).square().sum()) / energy
                for label in each.labels
            )
        listener(ProgressEvent("searching", "layers", place + 1, len(choices), "steps"))
    return scores
