"""Masks against slow references, and the step: the same shapes, the zeros asked for, and said in the manifest."""

import json

import pytest
import torch
from random_weights import random
from safetensors.torch import load_file

from sdcompress.errors import RecipeError, UserError
from sdcompress.execution.execute import execute
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.planning.steps.sparsify import Sparsify
from sdcompress.pruning.sparsity import kept_2_4, kept_share, scores
from sdcompress.quant.statistics import LayerStatistics
from sdcompress.sources.opening import open_source

HEAD = "schema_version: 1\ndescription: T\ncalibration: {prompts: [ab], num_inference_steps: 1}\ncomponents:\n  unet:\n"


@pytest.mark.parametrize("by_row", [True, False])
def test_the_least_go(by_row):
    score = scores(random(6, 8, 3, 3), None)
    kept = kept_share(score, 0.4, by_row)
    rows = score.flatten(1) if by_row else score.reshape(1, -1)
    for row, mask in zip(rows, kept.view(rows.shape), strict=True):
        gone = int(0.4 * len(row))
        assert int((~mask).sum()) == gone
        assert row[~mask].max() <= row[mask].min()


def test_of_equals_exactly_so_many_go():
    assert kept_share(torch.zeros(2, 10), 0.5, by_row=True).sum(1).tolist() == [5, 5]
    assert kept_share(torch.tensor([[0.0, 1, 1, 1]]), 0.5, by_row=True).tolist() == [[False, False, True, True]]


def test_two_of_every_four_input_channels_stay():
    score = scores(random(3, 8, 2, 2), None)
    kept = kept_2_4(score)
    for out in range(3):
        for y in range(2):
            for x in range(2):
                for start in (0, 4):
                    four = score[out, start : start + 4, y, x]
                    expected = four >= four.sort().values[2]
                    assert torch.equal(kept[out, start : start + 4, y, x], expected)


def test_wanda_weighs_columns_by_what_goes_in():
    moments = torch.tensor([100.0, 1.0, 1.0, 1e-4])
    statistics = LayerStatistics(1, torch.zeros(4), (moments.diag(),))
    kept = kept_share(scores(torch.tensor([[0.2, 1.0, 1.5, 50.0]]), statistics), 0.5, by_row=True)
    assert kept.tolist() == [[True, False, True, False]]  # scores 2, 1, 1.5 and 0.5


@pytest.mark.parametrize(
    ("options", "expected"),
    [("sparsity: 40%", 0.4), ('pattern: "2:4"', 0.5), ("sparsity: 0.4, method: wanda", 0.4)],
)
def test_weights_have_zeros_and_the_manifest_says_so(options, expected, nano_folder, tmp_path):
    recipe = parse_recipe(f"{HEAD}    - sparsify: {{{options}}}\n", "r")
    plan = make_plan(recipe, open_source(str(nano_folder)))
    manifest = execute(plan, tmp_path / "out")
    before, after = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (nano_folder, tmp_path / "out")
    )
    entry = manifest.to_json()["components"]["unet"]
    assert entry["weights_bytes"]["compressed"] == entry["weights_bytes"]["original"]
    sparse = {name: layer for name, layer in entry["layers"].items() if layer["format"] is None and "sparsity" in layer}
    assert len(sparse) > 20 and "conv_in" not in sparse
    for name, layer in sparse.items():
        tensor = after[f"{name}.weight"]
        zeros = 1 - int(tensor.count_nonzero()) / tensor.numel()
        assert layer["sparsity"] == zeros
        # floor() leaves at most one weight of a row, of which the shortest has 32.
        assert expected - 1 / 32 <= zeros <= expected
        kept = tensor != 0
        assert torch.equal(tensor[kept], before[f"{name}.weight"][kept])
    assert torch.equal(after["conv_in.weight"], before["conv_in.weight"])


def test_sparse_then_quantized_says_both(nano_folder, tmp_path):
    steps = "    - sparsify: {sparsity: 0.5}\n    - quantize: {format: int8}\n"
    execute(make_plan(parse_recipe(HEAD + steps, "r"), open_source(str(nano_folder))), tmp_path / "out")
    entry = json.loads((tmp_path / "out" / "sdcompress.json").read_text())["components"]["unet"]
    layer = entry["layers"]["mid_block.resnets.0.conv1"]
    assert layer["format"] == "int8" and layer["sparsity"] == 0.5
    codes = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")["mid_block.resnets.0.conv1.codes"]
    assert float((codes == 0).float().mean()) >= 0.5  # a symmetric format keeps zeros


@pytest.mark.parametrize(
    ("component", "parameters", "problem"),
    [
        ("unet", {}, "sparsity: give either this or pattern"),
        ("unet", {"sparsity": 0.5, "pattern": "2:4"}, "sparsity: give either this or pattern"),
        ("unet", {"sparsity": 0.5, "exclude": ("nowhere",)}, "exclude: 'nowhere' matches no layer of unet"),
        ("unet", {"sparsity": 0.5, "include": ("conv_in",)}, "include: leaves no layer of unet; matches no include"),
        (
            "safety_checker",
            {"sparsity": 0.5, "method": "wanda"},
            "method: nothing can be calibrated for safety_checker",
        ),
    ],
)
def test_what_cannot_be_is_said(component, parameters, problem):
    with pytest.raises(UserError) as error:
        Sparsify(**parameters).plan(open_source("sd15").components[component], "torch")
    assert any(str(each).startswith(problem) for each in error.value.problems), error.value.problems


def test_it_stands_before_casts(nano_folder):
    steps = "    - cast: {dtype: float16}\n    - sparsify: {sparsity: 0.5}\n"
    with pytest.raises(RecipeError, match="sparsify: must stand before cast"):
        make_plan(parse_recipe(HEAD + steps, "r"), open_source(str(nano_folder)))
