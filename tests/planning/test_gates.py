"""Gates: what they say, and where recipes hold them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdcompress.errors import RecipeError, UserError
from sdcompress.planning.gates import parse_gate
from sdcompress.planning.recipe import dump_recipe, parse_recipe

HEAD = "schema_version: 1\ndescription: d\ncomponents: {unet: [{cast: {dtype: float16}}]}\n"


def test_a_gate_is_a_figure_a_comparison_and_a_number() -> None:
    gate = parse_gate(" clip_score_drift >= -0.3 ")
    assert (gate.name, gate.comparison, gate.limit) == ("clip_score_drift", ">=", -0.3)
    assert gate.text == "clip_score_drift>=-0.3"
    assert parse_gate("size_ratio<=6e-1").limit == 0.6
    with pytest.raises(UserError, match="no figure 'psnr'; did you mean"):
        parse_gate("psnr>=30")
    for text in ("psnr_db", "psnr_db==30", "psnr_db>=high", "psnr_db>=30 dB", ""):
        with pytest.raises(UserError, match="must be NAME>=NUMBER"):
            parse_gate(text)


def test_recipes_hold_gates(tmp_path: Path) -> None:
    assert parse_recipe(HEAD, "old").gates == ()
    recipe = parse_recipe(HEAD + "gates: ['psnr_db >= 30', clip_score_drift>=-0.3]\n", "new")
    assert recipe.gates == ("psnr_db>=30", "clip_score_drift>=-0.3")
    assert parse_recipe(dump_recipe(recipe), "dumped") == recipe
    with pytest.raises(RecipeError, match=r"new: gates: .*no figure 'sise_ratio'; did you mean size_ratio"):
        parse_recipe(HEAD + "gates: [sise_ratio<=1]\n", "new")
