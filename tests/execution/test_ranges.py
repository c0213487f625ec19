"""Calibrated ranges: of every layer whose activations a plan rounds, and the same after being written down."""

from __future__ import annotations

import json

import pytest
from listeners import Events

from sdcompress import load_recipe, open_source
from sdcompress.calibration.settings import Calibration
from sdcompress.errors import SourceError
from sdcompress.execution.ranges import Ranges, calibrate_ranges, dump_ranges, parse_ranges
from sdcompress.planning.plan import Plan, layers_with_ranges, make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.sources.spec import CONVOLUTIONS, layers_of


def plan_of(components: str, **calibration: object) -> Plan:
    text = f"schema_version: 1\ndescription: T\ntarget: onnx\ncomponents:\n{components}"
    settings = Calibration.model_validate({"prompt_count": 1, "num_inference_steps": 1, **calibration})
    recipe = parse_recipe(text, "r.yaml").model_copy(update={"calibration": settings})
    return make_plan(recipe, open_source("tiny-sd"))


def ranges_of(plan: Plan) -> Ranges:
    return calibrate_ranges(plan, plan.source)


def unet(include: str = "['*']") -> str:
    return (
        "  unet:\n    - cast: {dtype: float32}\n"
        f"    - quantize: {{format: int8, activations: int8, include: {include}}}\n"
    )


@pytest.fixture(scope="module")
def everything() -> Plan:
    """All three components that can be calibrated, in the way of the recipe onnx-int8."""
    recipe = load_recipe("onnx-int8")
    settings = Calibration(prompt_count=1, num_inference_steps=1)
    return make_plan(recipe.model_copy(update={"calibration": settings}), open_source("tiny-sd"))


def test_every_observed_layer_has_its_ranges(everything: Plan) -> None:
    events = Events("calibrating")
    ranges = calibrate_ranges(everything, everything.source, events)
    wanted = layers_with_ranges(everything.steps)
    assert set(wanted) == {"text_encoder", "unet", "vae"}
    assert {component: set(layers) for component, layers in ranges.items()} == {
        component: set(layers) for component, layers in wanted.items()
    }
    assert events.counts == {event.subject: event.total for event in events}
    for component, layers in ranges.items():
        kinds = {layer.name: layer.kind for layer in layers_of(everything.source.components[component])}
        for name, found in layers.items():
            assert (found.output is not None) == (kinds[name] in CONVOLUTIONS), name
            for each in (found.input, found.output, found.first_token):
                assert each is None or (each.low <= 0 <= each.high and each.low < each.high), name
    assert all(found.first_token for found in ranges["text_encoder"].values())
    assert {name for name, found in ranges["unet"].items() if found.first_token} == {
        name for name in wanted["unet"] if name.endswith(("attn2.to_k", "attn2.to_v"))
    }
    assert not any(found.first_token for found in ranges["vae"].values())
    assert parse_ranges(json.loads(json.dumps(dump_ranges(ranges)))) == ranges


def test_the_method_is_the_recipes() -> None:
    """Of the same pictures: all values, or less of them; the same twice."""
    only = unet(include="[conv_out]")
    found = {
        method: ranges_of(plan_of(only, range=method))["unet"]["conv_out"].input
        for method in ("minmax", "mse", "percentile")
    }
    assert found["minmax"].low <= found["mse"].low < found["mse"].high <= found["minmax"].high
    assert found["percentile"].high < found["minmax"].high
    assert ranges_of(plan_of(only))["unet"]["conv_out"].input == found["mse"]


def test_nothing_to_calibrate_draws_nothing() -> None:
    plan = plan_of("  unet:\n    - cast: {dtype: float32}\n    - quantize: {format: int8}\n")
    events = Events()
    assert calibrate_ranges(plan, plan.source, events) == {} and not events


def test_without_weights_there_is_nothing_to_draw_with() -> None:
    text = f"schema_version: 1\ndescription: T\ntarget: onnx\ncomponents:\n{unet()}"
    plan = make_plan(parse_recipe(text, "r.yaml"), open_source("sd15"))
    with pytest.raises(SourceError, match="sd15: has no weights here"):
        ranges_of(plan)
