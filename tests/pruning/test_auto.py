"""prune auto: what is measured is the error of leaving a part out, measured once, and the least important go first."""

import pytest
import torch
from listeners import Events

from sdcompress.backends.torch import unit_sensitivity
from sdcompress.backends.torch.loading import open_pipeline
from sdcompress.backends.torch.unit_sensitivity import SAMPLES, measure_units, sampled_calls
from sdcompress.calibration.settings import FIRST_SEED, Calibration
from sdcompress.errors import RecipeError
from sdcompress.planning.automatic_pruning import choose_units, measured_units
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import dump_recipe, parse_recipe
from sdcompress.pruning.units import Unit
from sdcompress.sources.opening import open_source

CALIBRATION = Calibration(prompts=("ab",), num_inference_steps=2)
RECIPE = (
    "schema_version: 1\ndescription: T\ncomponents:\n  unet:\n    - prune: {{auto: {share}}}\n"
    "calibration: {{prompts: [ab], num_inference_steps: 2}}\n"
)


def ignore(*_):
    pass


def test_sampled_calls_spread_over_prompts_and_steps():
    calls = sampled_calls(8, 20)
    assert len(calls) == SAMPLES and {call // 20 for call in calls} == set(range(8))
    assert max(call % 20 for call in calls) >= 15 and min(call % 20 for call in calls) < 5
    assert len(sampled_calls(1, 50)) == SAMPLES and len(sampled_calls(30, 4)) == SAMPLES
    assert sampled_calls(2, 3) == set(range(6))


def test_least_error_for_each_parameter_goes_first():
    units = (Unit("a", (), 100), Unit("b", (), 10), Unit("c", (), 50))
    errors = {"a": 1.0, "b": 0.2, "c": 0.4}  # 0.01, 0.02, 0.008 for each parameter
    assert choose_units(units, errors, 50) == ("c",)
    assert choose_units(units, errors, 51) == ("a", "c")
    assert choose_units(units, errors, 151) == ("a", "b", "c")


def test_measured_is_the_error_of_the_unet_without_the_part(nano_folder):
    """Against the same trajectory drawn by the whole pipeline, and the part's output replaced by a hook."""
    unit = "up_blocks.1.attentions.0"
    measured = measure_units(open_source(str(nano_folder)), "unet", [unit, "mid_block.resnets.0"], CALIBRATION, ignore)
    pipeline = open_pipeline(nano_folder, device="cpu")
    seen = []
    hook = pipeline.unet.register_forward_hook(
        lambda _, arguments, keywords, output: seen.append((arguments, keywords, output[0])), with_kwargs=True
    )
    pipeline("ab", num_inference_steps=2, generator=torch.Generator().manual_seed(FIRST_SEED), output_type="latent")
    hook.remove()
    part = pipeline.unet.get_submodule(unit)
    part.register_forward_hook(lambda _, arguments, output: (arguments[0],))
    errors = []
    with torch.no_grad():
        for arguments, keywords, whole in seen:
            without = pipeline.unet(*arguments, **keywords)[0]
            errors.append(float((without - whole).square().sum() / whole.square().sum()))
    assert len(errors) == 2
    assert measured[unit] == pytest.approx(sum(errors) / 2, rel=1e-4)  # float32 sums in another order
    assert measured[unit] != measured["mid_block.resnets.0"]


def test_plan_removes_the_share_and_measures_once(nano_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path))
    source = open_source(str(nano_folder))
    recipe = parse_recipe(RECIPE.format(share="30%"), "r")
    assert parse_recipe(dump_recipe(recipe), "again") == recipe
    events = Events("measuring")
    plan = make_plan(recipe, source, events)
    assert [(event.subject, event.done) for event in events] == [("text_encoder", 1), ("unet", 1), ("unet", 2)]
    before, after = source.components["unet"], plan.after("unet")
    assert 0.3 <= 1 - after.parameters / before.parameters < 0.5
    step = plan.steps_of("unet")[0].step
    assert step.auto is None and set(step.remove) < {unit.name for unit in measured_units(before)}
    monkeypatch.setattr(unit_sensitivity, "measure_units", lambda *_: pytest.fail("measured again"))
    assert make_plan(recipe, source).after("unet") == after


def test_what_auto_cannot_do_is_said(nano_folder):
    source = open_source(str(nano_folder))
    with pytest.raises(RecipeError, match=r"prune\.auto: 99% of unet asked for, and its removable parts are 9\d%|8\d%"):
        make_plan(parse_recipe(RECIPE.format(share="99%"), "r"), source)
    with pytest.raises(RecipeError, match=r"prune\.auto: is measured on the original.s weights.*use pattern or remove"):
        make_plan(parse_recipe(RECIPE.format(share="0.3"), "r"), open_source("sd15"))
    text = RECIPE.format(share="0.3").replace("unet:", "text_encoder:")
    with pytest.raises(RecipeError, match="auto: text_encoder is a CLIPTextModel"):
        make_plan(parse_recipe(text, "r"), source)
