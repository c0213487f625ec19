"""Every fold on real models in float64: consumers see their inputs divided, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import random_weights
import torch
from tiny_parts import clip_text, denoised, t5_text, tiny_transformer, tiny_unet, tiny_vae

from sdcompress import open_source
from sdcompress.families.foldable import Fold, folds
from sdcompress.quant.smoothing import scaled
from sdcompress.sources import catalog
from sdcompress.sources.spec import ComponentSpec, parameter


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return random_weights.random(*shape, seed=seed, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _everything_in_float64() -> Iterator[None]:
    """Also what the models make by themselves, such as masks."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def unet(**changes: Any) -> torch.nn.Module:
    return tiny_unet(  # type: ignore[no-any-return]
        down_block_types=("CrossAttnDownBlock2D", "AttnDownBlock2D"), attention_head_dim=4, **changes
    )


def safety_checker() -> torch.nn.Module:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**sizes, "image_size": 8, "patch_size": 4, "projection_dim": 8}
    return StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))  # type: ignore


def text_states(model: torch.nn.Module) -> torch.Tensor:
    out = model(torch.tensor([[1, 5, 7, 19]]), output_hidden_states=True)
    return torch.cat([part.flatten() for part in (*out.hidden_states, out.last_hidden_state, out[0])])


def decoded(model: Any) -> torch.Tensor:
    return model(random(1, 3, 8, 8)).sample  # type: ignore[no-any-return]


def seen_picture(model: Any) -> torch.Tensor:
    return model.visual_projection(model.vision_model(random(1, 3, 8, 8))[1])  # type: ignore[no-any-return]


# A model, what is computed with it, and how many folds there must be, counted by hand.
MODELS: Mapping[str, tuple[Callable[[], Any], Callable[[Any], torch.Tensor], int]] = {
    # Three transformers (down, mid, up twice) of 8 folds: norm, 3 norms, 2 values, 1 GEGLU; an AttnDownBlock2D of 2.
    "UNet2DConditionModel": (unet, denoised, 4 * 7 + 2),
    "AutoencoderKL": (tiny_vae, decoded, 2 * 2),
    "SD3Transformer2DModel": (
        lambda: tiny_transformer("SD3Transformer2DModel", dual_attention_layers=(0,)), denoised, 2 + 1
    ),
    "FluxTransformer2DModel": (lambda: tiny_transformer("FluxTransformer2DModel"), denoised, 1),
    "PixArtTransformer2DModel": (lambda: tiny_transformer("PixArtTransformer2DModel"), denoised, 2 * 2),
    "SanaTransformer2DModel": (lambda: tiny_transformer("SanaTransformer2DModel"), denoised, 2 * 2),
    "CLIPTextModel": (clip_text, text_states, 2 * 3),
    "CLIPTextModelWithProjection": (lambda: clip_text(projected=True), text_states, 2 * 3),
    "StableDiffusionSafetyChecker": (safety_checker, seen_picture, 2 * 3),
    "T5EncoderModel": (t5_text, text_states, 2 * 4),
}  # fmt: skip


def shake(model: torch.nn.Module) -> torch.nn.Module:
    """The model in float64 with random weights throughout: norms begin as 1 and 0, which would hide mistakes."""
    model = model.double().eval().requires_grad_(False)
    for place, (name, value) in enumerate(sorted(model.named_parameters())):
        noise = random(*value.shape, seed=place)
        value.copy_(1 + 0.3 * noise if "norm" in name and name.endswith(".weight") else 0.3 * noise)
    return model


def spec_of(model: Any) -> ComponentSpec:
    tensors = {name: parameter(tuple(value.shape), "F64") for name, value in model.state_dict().items()}
    config = model.config if isinstance(model.config, Mapping) else model.config.to_dict()
    return ComponentSpec("part", "diffusers", type(model).__name__, dict(config), tensors)


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
    make, run, count = MODELS[class_name]
    model = shake(make())
    spec = spec_of(model)
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
    found = folds(spec_of(unet(only_cross_attention=True)))
    assert found and not any("norm1" in producer for fold in found for producer, _ in fold.producers)


def test_a_relu_without_gate_is_left_alone() -> None:
    found = folds(spec_of(t5_text(feed_forward_proj="relu")))
    consumers = {layer for fold in found for layer in fold.consumers}
    assert any(layer.endswith("DenseReluDense.wi") for layer in consumers)
    assert not any(layer.endswith("DenseReluDense.wo") for layer in consumers)


def test_layers_already_quantized_and_unknown_classes_have_none() -> None:
    spec = spec_of(clip_text())
    codes = {name.replace("fc1.weight", "fc1.codes"): tensor for name, tensor in spec.tensors.items()}
    assert len(folds(spec.replace(tensors=codes))) == len(folds(spec)) - 2
    assert folds(spec.replace(class_name="MyModel")) == ()
