"""What follows pruning is calibrated on the pruned pipeline: the same as pruning in a recipe of its own before."""

import pytest

from sdcompress.backends.component import TrainingContext
from sdcompress.execution.execute import execute
from sdcompress.execution.pruning import apply_pruning_steps, later_steps, pruned_source, pruning_steps
from sdcompress.execution.ranges import calibrate_ranges
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.sources.opening import open_source

HEAD = "schema_version: 1\ndescription: T\ncalibration: {prompts: [ab], num_inference_steps: 2}\n"
PRUNED = {
    "stock": "    - prune: {pattern: bk-sdm-base}\n",
    "own": "    - prune: {remove: [mid_block.attentions.0], heads: 0.5, importance: activation}\n",
}
GPTQ = "    - quantize: {format: uint4, rounding: gptq}\n"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def plan_of(steps, folder, target="torch", text=""):
    recipe = parse_recipe(f"{HEAD}target: {target}\ncomponents:\n{text}  unet:\n{steps}", "r")
    return make_plan(recipe, open_source(str(folder)))


@pytest.mark.parametrize("kind", PRUNED)
def test_gptq_after_pruning_is_gptq_of_the_pruned_pipeline(kind, nano_folder, tmp_path):
    text = "  text_encoder:\n    - prune: {text_layers: 1}\n"  # what it gives the UNet is calibrated on too
    execute(plan_of(PRUNED[kind] + GPTQ, nano_folder, text=text), tmp_path / "at-once")
    execute(plan_of(PRUNED[kind], nano_folder, text=text), tmp_path / "pruned")
    execute(plan_of(GPTQ, tmp_path / "pruned"), tmp_path / "apart")
    assert (tmp_path / "at-once" / WEIGHTS).read_bytes() == (tmp_path / "apart" / WEIGHTS).read_bytes()


def test_ranges_after_pruning_are_those_of_the_pruned_pipeline(nano_folder, tmp_path):
    rounded = "    - cast: {dtype: float32}\n    - quantize: {format: int8, activations: int8}\n"
    prune = "    - prune: {remove: [up_blocks.0.resnets.1], heads: 0.5}\n"
    plan = plan_of(prune + rounded, nano_folder, "onnx")
    read = plan.modified_source.reader("unet")
    unet = apply_pruning_steps(plan, "unet", read, {}, TrainingContext(plan.source, tmp_path))
    source = pruned_source(plan, {"unet": unet})
    ranges = calibrate_ranges(plan, source)["unet"]
    assert "up_blocks.0.resnets.1.conv1" not in ranges
    execute(plan_of(prune, nano_folder), tmp_path / "pruned")
    apart = plan_of(rounded, tmp_path / "pruned", "onnx")
    assert ranges == calibrate_ranges(apart, apart.source)["unet"]


def test_steps_are_split_where_weights_are_settled(nano_folder):
    plan = plan_of(f"{PRUNED['stock']}    - cast: {{dtype: float16}}\n{GPTQ}", nano_folder)
    assert [step.step.kind for step in pruning_steps(plan.steps)] == ["prune"]
    assert [step.step.kind for step in later_steps(plan.steps)] == ["cast", "quantize"]
