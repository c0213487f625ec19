import random

import pytest

from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.searching.recipe_writer import LayerChoice, short_patterns, write_recipe
from sdcompress.searching.space import Space, fixed_bytes, list_choices
from sdcompress.sources.layer_patterns import matches
from sdcompress.sources.opening import open_source


@pytest.mark.parametrize("seed", range(3))
def test_the_plan_of_a_written_recipe_is_the_allocation(seed: int) -> None:
    """Whatever the allocation is, each layer gets its format, and the bytes are those that were counted."""
    rng, source = random.Random(seed), open_source("tiny-sd")
    choices = list_choices(source, Space())
    weights = [rng.random() ** 2 for _ in range(7)]
    chosen = [
        LayerChoice(each, rng.choices(range(len(each.labels)), weights[: len(each.labels)])[0], 1e-6 * rng.random())
        for each in choices
    ]
    text = write_recipe(chosen, "a test", "gptq", {"prompt_count": 8}, ["found: by chance"])
    plan = make_plan(parse_recipe(text, "test"), source)
    planned = {
        f"{step.component}:{outcome.layer}": outcome.format or "float16"
        for step in plan.steps
        if step.step.kind == "quantize"
        for outcome in step.planned.layers
    }
    assert {each.choices.key: each.label for each in chosen}.items() <= planned.items()
    counted = fixed_bytes(source, choices) + sum(each.size_bytes for each in chosen)
    assert sum(spec.weights_bytes for spec in plan.components_after.values()) == counted


def test_patterns_match_the_wanted_layers_alone() -> None:
    layers = [f"down.{block}.attn{kind}.to_{leaf}" for block in range(3) for kind in (1, 2) for leaf in "qkv"]
    rng = random.Random(1)
    for _ in range(20):
        wanted = sorted(rng.sample(layers, 7))
        others = [layer for layer in layers if layer not in wanted]
        patterns = short_patterns(wanted, others)
        assert all(any(matches(pattern, layer) for pattern in patterns) for layer in wanted)
        assert not any(matches(pattern, layer) for pattern in patterns for layer in others)
