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


def error_of(text):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml")
    return caught.value


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
    ("change", "field"),
    [
        (("quantize:", "quantise:"), "components.unet.1"),
        (("exclude", "excludes"), "components.unet.1.quantize.excludes"),
        (("dtype: float16", "dtype: f16"), "components.unet.0.cast.dtype"),
        (("dtype: float16", ""), "components.unet.0.cast.dtype"),
        (("schema_version: 1", "schema_version: 2"), "schema_version"),
        (("description: A test.", ""), "description"),
        (("components:", "component:"), "component"),
        (("    - cast: {dtype: float16}\n", "    - cast\n"), "components.unet.0"),
        (("{dtype: float16}", "float16"), "components.unet.0.cast"),
        (("format: int8", "format: int8, format: nf4"), ""),  # a key given twice
        (('["conv_in"]', "[3"), ""),  # no YAML
    ],
)
def test_mistakes_are_named(change, field):
    assert change[0] in GOOD
    error = error_of(GOOD.replace(*change))
    assert field in [problem.field for problem in error.problems]
    assert all(line.startswith("r.yaml: ") for line in str(error).splitlines())


def test_all_mistakes_at_once():
    text = GOOD.replace("quantize:", "quant:").replace("float16", "half")
    assert str(error_of(text.replace("schema_version: 1", "schema_version: x"))) == (
        "r.yaml: components.unet.0.cast.dtype: input should be 'float32', 'float16' or 'bfloat16' (got 'half')\n"
        "r.yaml: components.unet.1: no step 'quant'; did you mean quantize? known: cast, export, fuse_lora, prune, "
        "quantize, recover, replace_component, smooth, sparsify\n"
        "r.yaml: schema_version: input should be 1 (got 'x')"
    )


@pytest.mark.parametrize("text", ["", "- a", "just text"])
def test_no_mapping(text):
    assert "is not a mapping" in str(error_of(text))


def test_unknown_name_suggests():
    with pytest.raises(RecipeError, match="did you mean int8"):
        load_recipe("int88")
    with pytest.raises(RecipeError, match=r"no/such.yaml: no such file"):
        load_recipe("no/such.yaml")
