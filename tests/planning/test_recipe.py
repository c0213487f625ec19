"""Recipes: what they accept, and that every mistake is named with its YAML path."""

import pytest

from sdcompress.errors import RecipeError
from sdcompress.planning.recipe import dump_recipe, load_recipe, parse_recipe, shipped_recipes

GOOD = """
schema_version: 1
description: A test.
components:
  unet:
    - cast: {dtype: float16}
    - quantize: {format: int8, exclude: ["conv_in"]}
"""


def problems_of(text):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml")
    return str(caught.value).splitlines()


def test_round_trip():
    recipe = parse_recipe(GOOD, "r.yaml")
    assert [step.kind for step in recipe.components["unet"]] == ["cast", "quantize"]
    assert parse_recipe(dump_recipe(recipe), "again") == recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_parse_and_teach(name):
    recipe = load_recipe(name)
    assert parse_recipe(dump_recipe(recipe), "again") == recipe
    assert "#" in shipped_recipes()[name].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ("quantize:", "quantise:"),
            "components.unet.1: no step 'quantise'; did you mean quantize? known: cast, export, fuse_lora, prune",
        ),
        (("exclude", "excludes"), "components.unet.1.quantize.excludes: no such key; did you mean exclude?"),
        (("dtype: float16", "dtype: f16"), "components.unet.0.cast.dtype: input should be 'float32', 'float16'"),
        (("schema_version: 1", "schema_version: 2"), "schema_version: input should be 1 (got 2)"),
        (("description: A test.", ""), "description: missing"),
        (("components:", "component:"), "component: no such key; did you mean components?"),
        (("    - cast: {dtype: float16}\n", "    - cast\n"), "components.unet.0: must be one step with its parameters"),
        (("format: int8", "format: int8, format: nf4"), "key 'format' is given twice"),
        (("{dtype: float16}", "float16"), "components.unet.0.cast: must be a mapping of parameters"),
        (('["conv_in"]', "[3"), "is not valid YAML"),
    ],
)
def test_mistakes_are_named(change, expected):
    assert change[0] in GOOD
    (problem,) = [line for line in problems_of(GOOD.replace(*change)) if expected in line]
    assert problem.startswith("r.yaml: ")


def test_all_mistakes_at_once():
    text = (
        GOOD.replace("quantize:", "quant:").replace("float16", "half").replace("schema_version: 1", "schema_version: x")
    )
    assert len(problems_of(text)) == 3


@pytest.mark.parametrize("text", ["", "- a", "just text"])
def test_no_mapping(text):
    assert "is not a mapping" in problems_of(text)[0]


def test_unknown_name_suggests():
    with pytest.raises(RecipeError, match="did you mean int8"):
        load_recipe("int88")
    with pytest.raises(RecipeError, match=r"no/such.yaml: no such file"):
        load_recipe("no/such.yaml")
