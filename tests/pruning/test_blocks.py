"""prune remove on transformers: against the original with those blocks passing on what they get, in stock classes."""

import pytest
import torch
from tiny_parts import denoised, tiny_transformer

import sdcompress
from sdcompress.backends.component import Component
from sdcompress.backends.torch.loading import open_pipeline
from sdcompress.errors import RecipeError, UserError
from sdcompress.execution.execute import execute
from sdcompress.planning.automatic_pruning import measured_units, units_to_keep
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.planning.steps.prune import Prune
from sdcompress.sources.opening import open_source
from sdcompress.sources.spec import ComponentSpec, parameter

MODELS = {
    "SD3Transformer2DModel": {"num_layers": 4, "dual_attention_layers": (0, 2), "qk_norm": "rms_norm"},
    "FluxTransformer2DModel": {"num_layers": 3, "num_single_layers": 3},
    "PixArtTransformer2DModel": {"num_layers": 3},
    "SanaTransformer2DModel": {"num_layers": 3},
}
REMOVED = {
    "SD3Transformer2DModel": (("transformer_blocks.1",), {"num_layers": 3, "dual_attention_layers": [0, 1]}),
    "FluxTransformer2DModel": (
        ("transformer_blocks.[02]", "single_*.1"),
        {"num_layers": 1, "num_single_layers": 2},
    ),
    "PixArtTransformer2DModel": (("*.0", "*.1"), {"num_layers": 1}),
    "SanaTransformer2DModel": (("transformer_blocks.1",), {"num_layers": 2}),
}
CALIBRATION = "\ncalibration: {prompts: [a red cat], num_inference_steps: 2, height: 32, width: 32}\n"


def transformer(name):
    torch.manual_seed(0)
    return tiny_transformer(name, **MODELS[name]).eval()


def component_of(model):
    tensors = {name: parameter(tuple(value.shape), "F32") for name, value in model.state_dict().items()}
    config = {name: value for name, value in model.config.items() if name != "_use_default_values"}
    spec = ComponentSpec("transformer", "diffusers", type(model).__name__, config, tensors)
    return Component(spec, model.state_dict().__getitem__, {})


@pytest.mark.parametrize("name", MODELS)
def test_the_rest_computes_what_the_whole_does_with_those_blocks_passed_by(name):
    model = transformer(name)
    patterns, config = REMOVED[name]
    part, step = component_of(model), Prune(remove=patterns)
    planned = step.plan(part.spec, "torch")
    after = step.apply(part, planned)
    assert {key: planned.spec.config[key] for key in config} == config
    assert "quantization_config" not in planned.spec.config
    gone = [outcome.layer for outcome in planned.layers]
    stock = type(model).from_config(dict(planned.spec.config)).eval()
    stock.load_state_dict({tensor: after.read(tensor) for tensor in planned.spec.tensors}, strict=True)
    whole = denoised(model)

    def passed_by(block, arguments, keywords, output):
        hidden = arguments[0] if arguments else keywords["hidden_states"]
        return (keywords["encoder_hidden_states"], hidden) if isinstance(output, tuple) else hidden

    for block in gone:
        model.get_submodule(block).register_forward_hook(passed_by, with_kwargs=True)
    assert torch.equal(denoised(stock), denoised(model))  # the same operations on the same numbers
    assert not torch.allclose(denoised(stock), whole)


@pytest.mark.parametrize(
    ("name", "parameters", "problem"),
    [
        ("SD3Transformer2DModel", {"remove": ("*.1?",)}, "remove: '*.1?' matches no removable part of transformer; "
         "there are 4 transformer_blocks"),
        ("SD3Transformer2DModel", {"remove": ("*.3",)}, "remove: transformer_blocks.3 is the last of transformer's"),
        ("FluxTransformer2DModel", {"remove": ("single_*",)}, "remove: takes in all 3 single_transformer_blocks"),
        ("PixArtTransformer2DModel", {"remove": ("transformer_blocks",)}, "remove: takes in all 3 transformer_blocks"),
        ("SanaTransformer2DModel", {"heads": 0.5}, "heads: does not go with transformer, which is a SanaTransformer"),
        ("SanaTransformer2DModel", {"pattern": "bk-sdm-base"}, "pattern: does not go with transformer"),
        ("SanaTransformer2DModel", {"auto": 0.3}, "auto: is measured on the original's weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(name, parameters, problem):
    with pytest.raises(UserError) as error:
        Prune(**parameters).plan(component_of(transformer(name)).spec, "torch")
    assert any(str(each).startswith(problem) for each in error.value.problems), error.value.problems


def test_of_each_list_one_block_is_spared():
    spec = component_of(transformer("FluxTransformer2DModel")).spec
    errors = {"transformer_blocks.1": 2.0, "single_transformer_blocks.2": 3.0}
    assert {unit.name for unit in units_to_keep(spec, measured_units(spec), errors)} == set(errors)
    spec = component_of(transformer("SD3Transformer2DModel")).spec
    assert not units_to_keep(spec, measured_units(spec), {})
    assert [unit.name[-1] for unit in measured_units(spec)] == ["0", "1", "2"]


def made(folder, steps, out, target="torch"):
    text = f"schema_version: 1\ndescription: T\ntarget: {target}\ncomponents: {{transformer: [{steps}]}}{CALIBRATION}"
    plan = make_plan(parse_recipe(text, "r"), open_source(str(folder)))
    execute(plan, out)
    after = open_source(str(out)).components["transformer"]
    assert dict(after.tensors) == dict(plan.after("transformer").tensors)
    return plan, after


@pytest.mark.parametrize(
    ("family", "pattern"),
    [("sd3", "transformer_blocks.0"), ("flux", "single_transformer_blocks.0"), ("pixart", "*.1"), ("sana", "*.0")],
)
def test_quantization_is_calibrated_on_what_is_left(family, pattern, family_folder, tmp_path):
    from diffusers import DiffusionPipeline

    steps = f'prune: {{remove: ["{pattern}"]}}'
    made(family_folder(family), f"{{{steps}}}", tmp_path / "plain")
    whole = DiffusionPipeline.from_pretrained(family_folder(family)).transformer
    stock = DiffusionPipeline.from_pretrained(tmp_path / "plain").transformer
    lists = ("transformer_blocks", "single_transformer_blocks")
    counts = [sum(len(getattr(model, name, ())) for name in lists) for model in (whole, stock)]
    assert counts[1] == counts[0] - 1
    gptq = "quantize: {format: uint4, group_size: 16, rounding: gptq}"
    _, after = made(family_folder(family), f"{{{steps}}}, {{{gptq}}}", tmp_path / "gptq")
    assert after.parameters == sum(value.numel() for value in stock.parameters())
    again = open_pipeline(tmp_path / "gptq", device="cpu").transformer
    layer = "transformer_blocks.0.attn1.to_q" if family in ("pixart", "sana") else "transformer_blocks.0.attn.to_q"
    error = (again.get_submodule(layer).weight - stock.get_submodule(layer).weight).norm()
    # 4 bits: a step is a fifteenth of a group's range; other blocks' weights would be off by their own size.
    assert error < 0.3 * stock.get_submodule(layer).weight.norm()


def test_auto_measures_blocks(family_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path / "cache"))
    for family, share in (("flux", "15%"), ("sana", "20%"), ("sd3", "25%")):
        folder = family_folder(family)
        plan, after = made(folder, f"{{prune: {{auto: {share}}}}}", tmp_path / family)
        (step,) = plan.steps_of("transformer")
        assert len(step.step.remove) == 1
        before = open_source(str(folder)).components["transformer"]
        assert after.parameters <= (1 - float(share[:-1]) / 100) * before.parameters
    with pytest.raises(RecipeError, match=r"prune\.auto: 90% of transformer asked for, and its removable parts are"):
        made(family_folder("sana"), "{prune: {auto: 90%}}", tmp_path / "no")


@pytest.mark.full  # half a minute of tracing
def test_the_graph_has_no_more_than_what_is_left(family_folder, tmp_path):
    pytest.importorskip("onnxruntime")
    made(family_folder("pixart"), '{prune: {remove: ["*.0"]}}', tmp_path / "torch")
    text = (
        'schema_version: 1\ndescription: T\ntarget: onnx\ncomponents:\n  transformer: [{prune: {remove: ["*.0"]}}]\n'
        '  "*": [{cast: {dtype: float32}}]\n'
    )
    execute(make_plan(parse_recipe(text, "r"), open_source(str(family_folder("pixart")))), tmp_path / "onnx")
    pictures = []
    for out in ("torch", "onnx"):
        pipeline = sdcompress.open_pipeline(tmp_path / out, device="cpu")
        generator = torch.Generator().manual_seed(0)
        pictures.append(
            pipeline("a red cat", num_inference_steps=2, height=32, width=32, use_resolution_binning=False,
                     clean_caption=False, generator=generator, output_type="np").images[0]
        )  # fmt: skip
    assert abs(pictures[0] - pictures[1]).max() < 1e-4  # float32 in another order of summation, as in test_contracts
