"""Plans: what they say of catalog models and which recipes they refuse."""

import dataclasses

import pytest

from sdcompress.errors import RecipeError
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import load_recipe, parse_recipe, shipped_recipes
from sdcompress.report.plan_view import describe_plan
from sdcompress.sources.opening import open_source


def plan(model, components, target="torch"):
    text = f"schema_version: 1\ndescription: A test.\ntarget: {target}\ncomponents:\n{components}"
    return make_plan(parse_recipe(text, "r.yaml"), open_source(model))


def problems_of(component, steps, target="torch"):
    """The problems of a recipe for SD 1.5 with these steps of one component, `; ` between them."""
    listed = "".join(f"    - {step}\n" for step in steps.split("; "))
    with pytest.raises(RecipeError) as caught:
        plan("sd15", f"  {component}:\n{listed}", target)
    assert caught.value.exit_code == 2
    return caught.value.problems


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if not name.startswith(("pruned-", "bk-sdm-"))])
@pytest.mark.parametrize("model", ["sd15", "sd21", "sdxl", "sd3-medium", "flux-schnell"])
def test_shipped_recipes_fit_every_catalog_model(model, name):
    recipe, source = load_recipe(name), open_source(model)
    if name in ("onnx-int8", "onnx-int4", "onnx-mixed") and "transformer" in source.components:
        with pytest.raises(RecipeError, match=r"components\.unet: the pipeline has no such component"):
            make_plan(recipe, source)  # they say which of a UNet's layers to spare
        return
    description = describe_plan(make_plan(recipe, source))
    assert description["compressed"]["parameters"] == description["original"]["parameters"]


def test_tiny_sd_int8_is_eight_bits_and_little_more():
    """Codes and scales of the quantized layers alone, over the weights they stand for."""
    made = make_plan(load_recipe("int8"), open_source("tiny-sd"))
    for name, spec in made.components_after.items():
        packed = [tensor for key, tensor in spec.tensors.items() if key.endswith((".codes", ".scale"))]
        bits = 8 * sum(tensor.size_bytes for tensor in packed) / sum(tensor.parameters for tensor in packed)
        assert 8 < bits <= 8.3, name


def test_sd15_int8_halves_the_unet():
    spec = plan("sd15", "  unet:\n    - quantize: {format: int8}\n").after("unet")
    assert 8.0 < spec.bits_per_weight < 8.05


def test_sd15_linear_only_4_bit_is_reported_as_what_it_is():
    """1.29x for a UNet whose convolutions stay in float16: what a 4-bit claim must be held to."""
    linear = plan("sd15", "  unet:\n    - quantize: {format: nf4, keep_sensitive: false}\n").after("unet")
    every = plan("sd15", "  unet:\n    - quantize: {format: nf4, keep_sensitive: false, convolutions: true}\n").after(
        "unet"
    )
    original = open_source("sd15").components["unet"]
    assert original.weights_bytes / linear.weights_bytes == pytest.approx(1.29, abs=0.005)
    assert original.weights_bytes / every.weights_bytes == pytest.approx(3.55, abs=0.01)
    assert linear.bits_per_weight > 12


HALF, FLOAT = "cast: {dtype: float16}", "cast: {dtype: float32}"
ROUNDED = "quantize: {format: int8, activations: int8}"


@pytest.mark.parametrize(
    ("component", "steps", "field"),
    [
        ("unett", HALF, "components.unett"),
        ("unet", "quantize: {format: int9}", "0.quantize.format"),
        ("unet", "quantize: {format: int8, exclude: [conv_inn]}", "0.quantize.exclude"),
        ("unet", "quantize: {format: int8, overrides: [{layers: [x], format: nf4}]}", "0.quantize.overrides.0.layers"),
        ("unet", "quantize: {format: int8, overrides: [{layers: [conv_in], format: codebook4, scale_bits: 8}]}",
         "0.quantize.overrides.0.scale_bits"),
        ("unet", "quantize: {format: int3, roundin: gptq}", "0.quantize.roundin"),
        ("unet", "quantize: {format: int3, rounding: gtpq}", "0.quantize.rounding"),
        ("unet", "quantize: {format: nf4, rounding: gptq}", "0.quantize.rounding"),
        ("unet", "quantize: {format: nf4, rank: 8}", "0.quantize.rank"),
        ("unet", "quantize: {format: uint4, rank: 320, include: [conv_in]}", "0.quantize.format"),  # it is sensitive
        ("unet", "quantize: {format: uint4, rank: 320, keep_sensitive: false, include: [conv_in]}", "0.quantize.rank"),
        ("vae", "quantize: {format: nf4, include: ['*conv1']}", "0.quantize.format"),
        ("unet", "quantize: {format: nf4, group_size: 48}", "0.quantize.group_size"),
        ("safety_checker", "quantize: {format: uint4, rounding: gptq}", "0.quantize.rounding"),
        ("safety_checker", "smooth: {format: uint44}", "0.smooth.format"),
        ("safety_checker", "smooth: {format: uint4}", "0.smooth"),
        ("unet", "quantize: {format: uint4}; smooth: {format: uint4}", "1.smooth"),
        ("unet", "quantize: {format: int8}; cast: {dtype: float16}", "1.cast"),
        ("unet", "cast: {dtype: float16}; prune: {drop_mid_block: true}", "1.prune"),
        ("unet", "prune: {drop_mid_block: true}; prune: {heads: 0.5, importance: activation}", "1.prune"),
        ("vae", "prune: {drop_mid_block: true}", "0.prune"),
        ("unet", "prune: {}", "0.prune"),
        ("unet", "prune: {layers_per_block: 2}", "0.prune.layers_per_block"),
        ("unet", "quantize: {format: int4, activations: int8}", "0.quantize.activations"),
        ("unet", "export: {}", "0.export"),
    ],
)  # fmt: skip
def test_mistakes_are_named(component, steps, field):
    (problem, *more) = problems_of(component, steps)
    assert problem.field in (field, f"components.{component}.{field}")
    assert more == [] or problem.field.endswith(("format", "group_size"))  # several for one mistake


@pytest.mark.parametrize(
    ("component", "steps", "field"),
    [
        ("unet", "quantize: {format: nf4}", "0.quantize.format"),
        ("unet", f"{FLOAT}; quantize: {{format: uint4}}", "1.quantize.format"),
        ("unet", f"{FLOAT}; quantize: {{format: int4, scale_bits: 8, include: [mid_block]}}", "1.quantize.scale_bits"),
        ("unet", f"{FLOAT}; quantize: {{format: int8, group_size: 48, include: [conv_out]}}", "1.quantize.group_size"),
        ("unet", f"{HALF}; {ROUNDED}", "1.quantize.activations"),
        ("safety_checker", f"{FLOAT}; {ROUNDED}", "1.quantize.activations"),
        ("unet", f"{FLOAT}; quantize: {{format: int4, activations: int8}}", "1.quantize.activations"),
        ("unet", f"{FLOAT}; quantize: {{format: int8, group_size: 8, include: [mid_block], activations: int8}}",
         "1.quantize.activations"),
        ("unet", f"{FLOAT}; quantize: {{format: int8, activations_exclude: [conv_in]}}",
         "1.quantize.activations_exclude"),
        ("unet", f"{FLOAT}; quantize: {{format: int8, activations: int8, activations_exclude: [conv_inn]}}",
         "1.quantize.activations_exclude"),
        ("unet", f"{FLOAT}; export: {{}}; {FLOAT}", "2.cast"),
        ("unet", "cast: {dtype: bfloat16}", "1.export.dtype"),
        ("unet", "export: {static_shapes: {height: 512, width: 520}}", "0.export.static_shapes.width"),
        ("vae", "export: {static_shapes: {height: 516, width: 512}}", "0.export.static_shapes.height"),
        ("text_encoder", "export: {static_shapes: {height: 512, width: 512, sequence: 99}}",
         "0.export.static_shapes.sequence"),
    ],
)  # fmt: skip
def test_mistakes_about_onnx_are_named(component, steps, field):
    assert [problem.field for problem in problems_of(component, steps, "onnx")] == [f"components.{component}.{field}"]


def test_messages_say_what_to_do():
    def message(*arguments):
        return problems_of(*arguments)[0].message

    assert message("unett", HALF).startswith("the pipeline has no such component; did you mean unet? known: ")
    assert (
        message("unet", "quantize: {format: nf4}", "onnx") == "nf4 cannot be packaged for target onnx; use int4 there"
    )
    assert "use int8 there" in message("unet", "quantize: {format: llm-int8}", "onnx")
    width = message("unet", "export: {static_shapes: {height: 512, width: 520}}", "onnx")
    assert width == "520 is no multiple of 64, which unet's halvings need; use 512 or 576"


def test_a_component_is_taken_once():
    with pytest.raises(RecipeError, match=r"^components\.u\*: unet is taken by components\.unet already$"):
        plan("sd15", f"  unet:\n    - {HALF}\n  u*:\n    - {HALF}\n")


def test_all_problems_at_once():
    with pytest.raises(RecipeError) as caught:
        plan("sd15", f"  nothing:\n    - {HALF}\n  unet:\n    - quantize: {{format: x}}\n")
    assert [problem.field for problem in caught.value.problems] == [
        "components.nothing", "components.unet.0.quantize.format"
    ]  # fmt: skip


def test_groups_that_do_not_divide_end_in_a_smaller_one():
    """320 channels are six groups of 48 and one of 32: seven scales for each output channel."""
    spec = plan("sd15", "  unet:\n    - quantize: {format: int8, group_size: 48, include: [conv_out]}\n").after("unet")
    assert spec.tensors["conv_out.scale"].shape == (4, 7)


def test_calibrated_layers_are_planned_with_their_memory():
    plain = plan("sd15", "  unet:\n    - quantize: {format: uint4, group_size: 64}\n")
    calibrated = plan("sd15", "  unet:\n    - quantize: {format: uint4, group_size: 64, rounding: gptq}\n")
    outcomes = {one.layer: one for one in calibrated.steps[0].planned.layers}
    assert outcomes["mid_block.resnets.0.conv1"].rounding == "gptq"
    assert set(calibrated.steps[0].planned.calibrated) == {name for name, one in outcomes.items() if one.format}
    assert plain.steps[0].planned.calibrated == ()
    assert plain.after("unet").tensors == calibrated.after("unet").tensors
    # The UNet in float32 and its layers' moments, at most Limits.blocks_bytes, are in memory while pictures are drawn.
    assert 4 * 859_520_964 < calibrated.peak_bytes - plain.peak_bytes < 4 * 859_520_964 + 2**31 + 2**30


def test_an_embedding_is_rounded_without_calibration():
    made = plan("sd15", "  text_encoder:\n    - quantize: {format: uint4, rounding: gptq}\n")
    methods = {one.kind: one.rounding for one in made.steps[0].planned.layers if one.format}
    assert methods == {"embedding": "search", "linear": "gptq"}


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        # 4 bits, and for each group of 64 a scale and a zero point of 8 bits, or scales alone of 16 or 8.
        ("format: uint4, group_size: 64, scale_bits: 8", 4 + 16 / 64),
        ("format: int4, group_size: 64", 4 + 16 / 64),
        ("format: int3, group_size: 32, scale_bits: 8", 3 + 8 / 32),
        ("format: normal-float4, group_size: 64, scale_bits: 8", 4 + 8 / 64),
        ("format: codebook2", 2),
    ],
)
def test_bits_per_weight_of_sd15(options, bits):
    """A layer whose groups divide: 1280 input channels, 3x3. The step of a row's scales is 16 bits in 11,520."""
    spec = plan("sd15", f"  unet:\n    - quantize: {{{options}, include: [mid_block.resnets.0.conv1]}}\n").after("unet")
    parts = [tensor for name, tensor in spec.tensors.items() if name.startswith("mid_block.resnets.0.conv1.")]
    stored = [tensor for tensor in parts if tensor.shape != (1280,) or tensor.parameters == 0]
    assert 8 * sum(tensor.size_bytes for tensor in stored) / (1280 * 1280 * 9) == pytest.approx(bits, abs=0.002)


def test_every_component_is_exported_though_no_key_names_it():
    made = plan("sd15", f"  unet:\n    - {FLOAT}\n    - export: {{attention: standard}}\n", target="onnx")
    last = {name: made.steps_of(name)[-1].step for name in made.source.components}
    assert {step.kind for step in last.values()} == {"export"}
    assert {name for name, step in last.items() if step.attention == "standard"} == {"unet"}


def test_an_exported_pipeline_is_no_source():
    source = dataclasses.replace(open_source("tiny-sd"), format="onnx")
    with pytest.raises(RecipeError, match="tiny-sd: is exported already; start from the original weights"):
        make_plan(load_recipe("int8"), source)


def test_optional_component():
    made = plan("sd21", "  safety_checker?:\n    - cast: {dtype: float16}\n  unet:\n    - cast: {dtype: float16}\n")
    assert {step.component for step in made.steps} == {"unet"}


def test_sensitive_layers_are_a_small_part_of_sd15():
    layers = describe_plan(plan("sd15", "  unet:\n    - quantize: {format: nf4, convolutions: true}\n"))
    spared = [row for row in layers["components"]["unet"]["layers"] if "sensitive" in row["reason"]]
    assert sum(row["parameters"] for row in spared) / 859_520_964 == pytest.approx(0.088, abs=0.0005)


def test_every_layer_left_alone_has_a_reason():
    for name in set(shipped_recipes()) - {"pruned-50-recovered-int8-onnx"}:  # which looks at weights
        description = describe_plan(make_plan(load_recipe(name), open_source("sd15")))
        for component in description["components"].values():
            assert all(layer["reason"] for layer in component["layers"] if layer["format"] is None)
