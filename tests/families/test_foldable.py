"""Every fold on real models in float64: consumers see their inputs divided, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

from sdcompress import open_source
from sdcompress.families.foldable import Fold, folds
from sdcompress.quant.smoothing import scaled
from sdcompress.sources import catalog
from sdcompress.sources.spec import ComponentSpec, parameter

Model = tuple[torch.nn.Module, Callable[[torch.nn.Module], torch.Tensor], dict[str, Any]]


@pytest.fixture(autouse=True)
def _everything_in_float64() -> Iterator[None]:
    """Also what the models make by themselves, such as masks."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unet(**changes: Any) -> Model:
    from diffusers import UNet2DConditionModel

    settings: dict[str, Any] = {
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4, "cross_attention_dim": 16, **changes,
    }  # fmt: skip
    model = UNet2DConditionModel(**settings)

    def run(model: torch.nn.Module) -> torch.Tensor:
        return model(random(2, 4, 8, 8), torch.tensor([3, 700]), random(2, 5, 16, seed=2)).sample  # type: ignore

    return model, run, dict(model.config)


def autoencoder() -> Model:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
                          up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=8)  # fmt: skip
    return model, lambda model: model(random(1, 3, 8, 8)).sample, dict(model.config)


def stable_diffusion_3() -> Model:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4,
                                  num_attention_heads=4, joint_attention_dim=12, caption_projection_dim=16,
                                  pooled_projection_dim=8, pos_embed_max_size=8,
                                  dual_attention_layers=(0,))  # fmt: skip

    def run(model: torch.nn.Module) -> torch.Tensor:
        return model(random(2, 4, 8, 8), random(2, 5, 12), random(2, 8), torch.tensor([3.0, 700.0])).sample  # type: ignore

    return model, run, dict(model.config)


def flux() -> Model:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=4,
                                   num_attention_heads=4, joint_attention_dim=12, pooled_projection_dim=8,
                                   axes_dims_rope=(0, 2, 2))  # fmt: skip

    def run(model: torch.nn.Module) -> torch.Tensor:
        return model(  # type: ignore[no-any-return]
            random(2, 6, 4), encoder_hidden_states=random(2, 5, 12), pooled_projections=random(2, 8),
            timestep=torch.tensor([0.1, 0.7]), txt_ids=torch.zeros(5, 3), img_ids=torch.zeros(6, 3),
        ).sample  # fmt: skip

    return model, run, dict(model.config)


def clip(projection: bool = False) -> Model:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                            num_attention_heads=4, projection_dim=8, max_position_embeddings=8)  # fmt: skip
    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)

    def run(model: torch.nn.Module) -> torch.Tensor:
        out = model(torch.tensor([[1, 5, 7, 19]]), output_hidden_states=True)
        return torch.cat([part.flatten() for part in (*out.hidden_states, out.last_hidden_state, out[0])])

    return model, run, config.to_dict()


def t5(gated: bool = True) -> Model:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=20, d_model=16, d_kv=4, num_heads=4, d_ff=24, num_layers=2,
                      feed_forward_proj="gated-gelu" if gated else "relu")  # fmt: skip
    return (
        T5EncoderModel(config),
        lambda model: model(torch.tensor([[1, 5, 7, 19]])).last_hidden_state,
        config.to_dict(),
    )


def safety_checker() -> Model:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        vision_config={**sizes, "image_size": 8, "patch_size": 4, "projection_dim": 8}, projection_dim=8
    )
    model = StableDiffusionSafetyChecker(config)
    return model, lambda model: model.visual_projection(model.vision_model(random(1, 3, 8, 8))[1]), config.to_dict()


def pixart() -> Model:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=4, num_attention_heads=2, in_channels=4, out_channels=8,
        cross_attention_dim=8, caption_channels=16, use_additional_conditions=False,
    )  # fmt: skip
    nothing = {"resolution": None, "aspect_ratio": None}
    return (
        model,
        lambda model: model(random(2, 4, 8, 8), random(2, 5, 16, seed=2), torch.tensor([7, 7]), nothing).sample,
        dict(model.config),
    )


def sana() -> Model:
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2,
        attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8,
        caption_channels=16,
    )  # fmt: skip
    return (
        model,
        lambda model: model(random(2, 4, 8, 8), random(2, 5, 16, seed=2), torch.tensor([7.0, 7.0])).sample,
        dict(model.config),
    )


MODELS: Mapping[str, tuple[Callable[[], Model], int]] = {  # and how many folds there must be, counted by hand
    # Three transformers (down, mid, up twice) of 8 folds: norm, 3 norms, 2 values, 1 GEGLU; an AttnDownBlock2D of 2.
    "UNet2DConditionModel": (unet, 4 * 7 + 2),
    "AutoencoderKL": (autoencoder, 2 * 2),
    "SD3Transformer2DModel": (stable_diffusion_3, 2 + 1),
    "FluxTransformer2DModel": (flux, 1),
    "PixArtTransformer2DModel": (pixart, 2 * 2),
    "SanaTransformer2DModel": (sana, 2 * 2),
    "CLIPTextModel": (clip, 2 * 3),
    "CLIPTextModelWithProjection": (lambda: clip(projection=True), 2 * 3),
    "StableDiffusionSafetyChecker": (safety_checker, 2 * 3),
    "T5EncoderModel": (t5, 2 * 4),
}


def shake(model: torch.nn.Module) -> torch.nn.Module:
    """The model in float64 with random weights throughout: norms begin as 1 and 0, which would hide mistakes."""
    model = model.double().eval().requires_grad_(False)
    for place, (name, value) in enumerate(sorted(model.named_parameters())):
        noise = random(*value.shape, seed=place)
        value.copy_(1 + 0.3 * noise if "norm" in name and name.endswith(".weight") else 0.3 * noise)
    return model


def spec_of(model: torch.nn.Module, class_name: str, config: Mapping[str, Any]) -> ComponentSpec:
    tensors = {name: parameter(tuple(value.shape), "F64") for name, value in model.state_dict().items()}
    return ComponentSpec("part", "diffusers", class_name, config, tensors)


def scales_of(fold: Fold, spec: ComponentSpec, seed: int) -> torch.Tensor:
    return (0.5 * random(spec.tensors[f"{fold.consumers[0]}.weight"].shape[1], seed=seed)).exp()


def inputs_of(model: torch.nn.Module, run: Callable[[torch.nn.Module], torch.Tensor], layers: set[str]) -> Any:
    seen: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(layer).register_forward_pre_hook(
            lambda module, args, layer=layer: seen.__setitem__(layer, args[0])
        )
        for layer in sorted(layers)
    ]
    output = run(model)
    for handle in handles:
        handle.remove()
    return seen, output


@pytest.mark.parametrize("class_name", MODELS)
def test_consumers_see_their_inputs_divided_and_the_output_stays(class_name: str) -> None:
    torch.manual_seed(0)
    make, count = MODELS[class_name]
    model, run, config = make()
    shake(model)
    spec = spec_of(model, class_name, config)
    found = folds(spec)
    assert len(found) == count
    consumers = {layer: place for place, fold in enumerate(found) for layer in fold.consumers}
    assert len(consumers) == sum(len(fold.consumers) for fold in found)  # none is scaled twice
    before, exact = inputs_of(model, run, set(consumers))

    scales = [scales_of(fold, spec, seed) for seed, fold in enumerate(found)]
    state = model.state_dict()
    for name, tensor in state.items():
        for fold, scale in zip(found, scales, strict=True):
            tensor = scaled(name, tensor, fold, scale)
        state[name] = tensor
    model.load_state_dict(state)
    after, output = inputs_of(model, run, set(consumers))

    # float64 through a few dozen layers: each loses some units of 2^-53 relative to its largest value. Sana's linear
    # attention computes in float32 whatever it is given.
    close = 1e-4 if class_name.startswith("Sana") else 1e-9
    torch.testing.assert_close(output, exact, rtol=close, atol=close * float(exact.abs().max()))
    for layer, place in consumers.items():
        axis = 1 if len(spec.tensors[f"{layer}.weight"].shape) == 4 else -1
        shape = [1] * before[layer].dim()
        shape[axis] = -1
        expected = before[layer] / scales[place].view(shape)
        torch.testing.assert_close(after[layer], expected, rtol=close, atol=close * float(expected.abs().max()))


def test_folds_of_a_transformer_block_by_hand() -> None:
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    by_consumer = {layer: fold for fold in folds(open_source("sd15").components["unet"]) for layer in fold.consumers}
    norm1 = ((f"{block}.norm1.weight", None), (f"{block}.norm1.bias", None))
    assert by_consumer[f"{block}.attn1.to_q"] == Fold(
        norm1, (f"{block}.attn1.to_q", f"{block}.attn1.to_k", f"{block}.attn1.to_v")
    )
    assert by_consumer[f"{block}.attn2.to_out.0"].producers == ((f"{block}.attn2.to_v.weight", None),)
    assert by_consumer[f"{block}.ff.net.2"].producers == (
        (f"{block}.ff.net.0.proj.weight", (0, 1280)),
        (f"{block}.ff.net.0.proj.bias", (0, 1280)),
    )
    assert not any(layer.endswith(("attn2.to_k", "attn2.to_v")) for layer in by_consumer)  # they read the text


@pytest.mark.parametrize("name", ["tiny-sd", *catalog.names()])
def test_known_architectures_have_folds_wherever_they_have_blocks(name: str) -> None:
    for spec in open_source(name).components.values():
        found = folds(spec)
        assert found == folds(spec)
        outputs = ("to_out.0", "self_attn.out_proj", "SelfAttention.o")
        attentions = [one for one in spec.tensors if one.endswith(tuple(f"{layer}.weight" for layer in outputs))]
        consumers = {f"{layer}.weight" for fold in found for layer in fold.consumers}
        assert consumers >= set(attentions)


def test_a_block_that_may_read_the_text_keeps_its_first_norm() -> None:
    model, _, config = unet(only_cross_attention=True)
    found = folds(spec_of(model, "UNet2DConditionModel", config))
    assert found and not any("norm1" in producer for fold in found for producer, _ in fold.producers)


def test_a_relu_without_gate_is_left_alone() -> None:
    model, _, config = t5(gated=False)
    consumers = {layer for fold in folds(spec_of(model, "T5EncoderModel", config)) for layer in fold.consumers}
    assert any(layer.endswith("DenseReluDense.wi") for layer in consumers)
    assert not any(layer.endswith("DenseReluDense.wo") for layer in consumers)


def test_layers_already_quantized_and_unknown_classes_have_none() -> None:
    model, _, config = clip()
    spec = spec_of(model, "CLIPTextModel", config)
    codes = {name.replace("fc1.weight", "fc1.codes"): tensor for name, tensor in spec.tensors.items()}
    assert len(folds(spec.replace(tensors=codes))) == len(folds(spec)) - 2
    assert folds(spec.replace(class_name="MyModel")) == ()
