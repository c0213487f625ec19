"""Pruned specs against the classes built from the pruned configs, and pruned weights against the original's."""

import pytest
import torch

from sdcompress.backends.component import Component
from sdcompress.backends.torch.loading import open_pipeline
from sdcompress.backends.torch.pruned_modules import rebuild
from sdcompress.backends.torch.source_parts import empty_component
from sdcompress.errors import UserError
from sdcompress.execution.execute import execute
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.planning.steps.prune import Prune
from sdcompress.quant.statistics import LayerStatistics
from sdcompress.sources.opening import open_source
from sdcompress.sources.pruned_config import pruning_of
from sdcompress.sources.spec import ComponentSpec, parameter

PATTERNS = ["bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny"]
STOCK = [
    *((model, {"pattern": pattern}) for model in ("sd15", "sd21") for pattern in PATTERNS),
    ("sd15", {"drop_mid_block": True}),
    ("sd15", {"drop_innermost_stage": True}),
    ("tiny-sd", {"layers_per_block": 1}),
    ("tiny-sd", {"pattern": "bk-sdm-small"}),
    ("sdxl", {"transformer_depth": 5}),
    ("sdxl", {"transformer_depth": 1, "pattern": "bk-sdm-base"}),
    ("sd15", {"remove": ("mid_block",)}),
]
OWN = [
    ("sd15", {"remove": ("*.attentions.1", "up_blocks.1.resnets.0", "mid_block.resnets.1")}),
    ("sd21", {"heads": 0.5, "feed_forward": 0.75, "resnet_channels": 0.6}),
    ("sdxl", {"remove": ("*.transformer_blocks.1",), "heads": 0.75}),
    ("tiny-sd", {"pattern": "bk-sdm-base", "heads": 0.75, "remove": ("up_blocks.1.resnets.1",)}),
]


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def planned_shapes(spec):
    return {name: tensor.shape for name, tensor in spec.tensors.items()}


def small_unet(**changes):
    """A UNet of three stages, the last two alike, about half a million parameters."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    settings = {
        "sample_size": 8, "block_out_channels": (16, 32, 32), "layers_per_block": 2, "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (2, 4, 4), "cross_attention_dim": 16,
    }  # fmt: skip
    return UNet2DConditionModel(**settings | changes).eval()


def spec_of(unet):
    tensors = {name: parameter(tuple(value.shape), "F32") for name, value in unet.state_dict().items()}
    # As in config.json; with it, from_config would put defaults in the place of what pruning set.
    config = {name: value for name, value in unet.config.items() if name != "_use_default_values"}
    return ComponentSpec("unet", "diffusers", "UNet2DConditionModel", config, tensors)


def component_of(unet, statistics=None):
    return Component(spec_of(unet), unet.state_dict().__getitem__, statistics or {})


def pruned_unet(unet, statistics=None, **parameters):
    """The UNet after a prune step, its weights loaded strictly into the class that its config builds."""
    from diffusers import UNet2DConditionModel

    part, step = component_of(unet, statistics), Prune(**parameters)
    planned = step.plan(part.spec, "torch")
    after = step.apply(part, planned)
    config = {name: value for name, value in planned.spec.config.items() if name != "quantization_config"}
    model = UNet2DConditionModel.from_config(config).eval()
    rebuild(model, pruning_of(planned.spec.config))
    model.load_state_dict({name: after.read(name) for name in planned.spec.tensors}, strict=True)
    return model


def step_of(unet, size=8):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, size, size, generator=generator)
    states = torch.randn(2, 5, 16, generator=generator)
    with torch.no_grad():
        return unet(sample, torch.tensor(500), states).sample


@pytest.mark.parametrize(("model", "parameters"), STOCK)
def test_spec_is_what_stock_diffusers_builds(model, parameters):
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    pruned = Prune(**parameters).plan(open_source(model).components["unet"], "torch").spec
    assert "quantization_config" not in pruned.config
    with init_empty_weights():
        assert planned_shapes(pruned) == shapes(UNet2DConditionModel.from_config(dict(pruned.config)))


@pytest.mark.parametrize(("model", "parameters"), OWN)
def test_spec_is_what_the_rebuilt_class_is(model, parameters):
    source = open_source(model)
    pruned = Prune(**parameters).plan(source.components["unet"], "torch").spec
    rebuilt = empty_component(pruned)
    assert pruned.config["quantization_config"]["quant_method"] == "sdcompress"
    assert planned_shapes(pruned) == shapes(rebuilt)


@pytest.mark.parametrize(
    ("pattern", "published", "parameters"),
    # arXiv:2305.15798, table 1, and the UNets that its authors released (nota-ai/bk-sdm-{base,small,tiny}): 579.38 M,
    # 482.35 M and 323.38 M. The table's figures of the latter two are rounded up.
    [("bk-sdm-base", 0.58, 579_384_964), ("bk-sdm-small", 0.49, 482_346_884), ("bk-sdm-tiny", 0.33, 323_384_964)],
)
def test_published_parameter_counts(pattern, published, parameters):
    spec = Prune(pattern=pattern).plan(open_source("sd15").components["unet"], "torch").spec
    assert spec.parameters == parameters
    assert abs(spec.parameters / 1e9 - published) < 0.01


def test_the_mid_block_of_sd15_is_11_3_percent():
    whole = open_source("sd15").components["unet"]
    without = Prune(drop_mid_block=True).plan(whole, "torch").spec
    assert 1 - without.parameters / whole.parameters == pytest.approx(0.113, abs=0.0005)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_run_with_stock_diffusers(pattern):
    """What is left joins: the tiny pattern's first up block takes the output of the stage that is innermost now."""
    unet = small_unet()
    pruned = pruned_unet(unet, pattern=pattern)
    output = step_of(pruned)
    assert output.shape == (2, 4, 8, 8) and output.isfinite().all()
    assert type(pruned.up_blocks[0]).__name__ == ("CrossAttnUpBlock2D" if pattern == "bk-sdm-tiny" else "UpBlock2D")
    if pattern == "bk-sdm-tiny":
        for new, old in {"up_blocks.0.resnets.1": "up_blocks.1.resnets.2", "up_blocks.1.upsamplers.0": None}.items():
            assert old is None or torch.equal(
                pruned.get_submodule(new).conv1.weight, unet.get_submodule(old).conv1.weight
            )


def test_removed_parts_pass_on_what_they_get():
    """The pruned UNet computes what the original does with those parts' outputs replaced by their shortcuts."""
    unet = small_unet(transformer_layers_per_block=2)
    names = ("down_blocks.1.resnets.1", "up_blocks.1.resnets.0", "up_blocks.2.attentions.0",
             "down_blocks.0.attentions.1.transformer_blocks.0")  # fmt: skip
    pruned = pruned_unet(unet, remove=names)
    assert pruned.up_blocks[1].resnets[0].conv_shortcut is not None

    def shortcut(module, arguments, keywords, output):
        hidden = arguments[0] if arguments else keywords["hidden_states"]
        if hasattr(module, "conv1"):
            return hidden if module.conv_shortcut is None else module.conv_shortcut(hidden)
        return (hidden,) if hasattr(module, "proj_in") else hidden

    for name in names:
        unet.get_submodule(name).register_forward_hook(shortcut, with_kwargs=True)
    assert torch.equal(step_of(pruned), step_of(unet))


def test_narrowing_is_leaving_those_channels_out():
    """Where the parts that go are zero in what reads them, the output stays the same up to float32 rounding."""
    unet = small_unet()
    resnet, block = unet.down_blocks[0].resnets[0], unet.down_blocks[0].attentions[0].transformer_blocks[0]
    groups = {name: block for name, block in unet.named_modules() if type(block).__name__ == "Attention"}
    with torch.no_grad():
        for attention in groups.values():
            attention.to_out[0].weight[:, : attention.inner_dim // 2] = 0  # half of the heads
            for projection in (attention.to_q, attention.to_k, attention.to_v):
                projection.weight[: attention.inner_dim // 2] *= 1e-3
        for module in unet.modules():
            if type(module).__name__ == "FeedForward":
                width = module.net[2].in_features
                module.net[2].weight[:, : width // 2] = 0
                module.net[0].proj.weight.view(2, width, -1)[:, : width // 2] *= 1e-3
    before = step_of(unet)
    pruned = pruned_unet(unet, heads=0.5, feed_forward=0.5)
    assert pruned.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads == 1
    assert torch.equal(
        pruned.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight, block.attn1.to_q.weight[8:]
    )
    # Sums over half as many terms, added in another order: a few ulp of outputs about 1.
    torch.testing.assert_close(step_of(pruned), before, rtol=1e-4, atol=1e-5)
    narrower = pruned_unet(unet, resnet_channels=0.5)
    kept = narrower.down_blocks[0].resnets[0]
    assert kept.conv1.weight.shape[0] == kept.norm2.num_channels == kept.conv2.weight.shape[1] == 8
    rows = [next(i for i in range(16) if torch.equal(resnet.conv1.weight[i], weight)) for weight in kept.conv1.weight]
    assert [row // 4 for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3], "half of the channels of each norm group"
    assert torch.equal(kept.conv2.weight, resnet.conv2.weight[:, rows])
    assert torch.equal(kept.time_emb_proj.weight, resnet.time_emb_proj.weight[rows])
    assert torch.equal(kept.norm2.weight, resnet.norm2.weight[rows])


def test_activation_importance_sees_what_magnitudes_do_not():
    """Channels that are large in weights and never active go first."""
    unet = small_unet()
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    with torch.no_grad():
        attention.to_out[0].weight[:, :8] *= 10  # the first head
    layers = Prune(heads=0.5, importance="activation").plan(spec_of(unet), "torch").calibrated
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0" in layers

    def statistics(layer):
        width = unet.get_submodule(layer).in_features
        energies = torch.ones(width)
        energies[: width // 2] = 1e-6
        return LayerStatistics(1, torch.zeros(width), (energies.diag(),))

    active = pruned_unet(unet, {layer: statistics(layer) for layer in layers}, heads=0.5, importance="activation")
    large = pruned_unet(unet, heads=0.5)
    kept = [each.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_v.weight for each in (active, large)]
    assert torch.equal(kept[0], attention.to_v.weight[8:])
    assert torch.equal(kept[1], attention.to_v.weight[:8])


def test_text_encoders_lose_layers_and_width_with_stock_configs():
    from transformers import CLIPTextConfig, CLIPTextModel

    spec = open_source("tiny-sd").components["text_encoder"]
    pruned = Prune(text_layers=2, feed_forward="50%").plan(spec, "torch").spec
    assert (pruned.config["num_hidden_layers"], pruned.config["intermediate_size"]) == (2, 384)
    with torch.device("meta"):
        built = CLIPTextModel(CLIPTextConfig.from_dict(dict(pruned.config)))
    count = sum(value.numel() for value in built.parameters())
    assert count == pruned.parameters < spec.parameters


@pytest.mark.parametrize(
    ("model", "component", "parameters", "field"),
    [
        ("tiny-sd", "unet", {"pattern": "bk-sdm-tiny"}, "drop_innermost_stage"),  # its stages differ in width
        ("sd15", "unet", {"pattern": "bk-sdm-base", "layers_per_block": 1}, "layers_per_block"),
        ("sd15", "unet", {"transformer_depth": 2}, "transformer_depth"),
        ("sd15", "unet", {"remove": ("mid_block", "conv_in")}, "remove"),
        ("sd15", "unet", {"auto": "30%"}, "auto"),
        ("sd15", "unet", {"heads": 0.99}, "heads"),
        ("sd15", "unet", {"text_layers": 9}, "text_layers"),
        ("sd15", "text_encoder", {"remove": ("mid_block",)}, "remove"),
        ("sd15", "text_encoder", {"text_layers": 12}, "text_layers"),
        ("sd15", "text_encoder", {"heads": 0.5}, "heads"),
        ("sd15", "vae", {"feed_forward": 0.5}, ""),
        ("sd15", "unet", {"importance": "activation"}, ""),
    ],
)
def test_what_cannot_be_is_said(model, component, parameters, field):
    with pytest.raises(UserError) as error:
        Prune(**parameters).plan(open_source(model).components[component], "torch")
    assert field in [problem.field for problem in error.value.problems]


def test_pruning_what_was_pruned_apart_from_stock_configs_is_refused():
    spec = Prune(heads=0.5).plan(open_source("sd15").components["unet"], "torch").spec
    with pytest.raises(UserError, match="pruned already"):
        Prune(heads=0.5).plan(spec, "torch")


def test_kept_weights_are_the_original_ones(nano_folder, tmp_path):
    """An up block keeps its first and its last layers, a down block its first."""
    text = "schema_version: 1\ndescription: T\ncomponents:\n  unet:\n    - prune: {layers_per_block: 1}\n"
    execute(make_plan(parse_recipe(text, "r"), open_source(str(nano_folder))), tmp_path / "out")
    before = open_pipeline(nano_folder, device="cpu").unet.state_dict()
    after = open_pipeline(tmp_path / "out", device="cpu").unet.state_dict()
    for new, old in {
        "down_blocks.0.resnets.0": "down_blocks.0.resnets.0",
        "up_blocks.1.resnets.1": "up_blocks.1.resnets.2",
    }.items():
        assert torch.equal(after[f"{new}.conv1.weight"], before[f"{old}.conv1.weight"])
    assert not any(name.startswith("up_blocks.1.resnets.2") for name in after)
