"""Full-size pipelines with random float16 weights, made on the device: originals, and what recipes make of them.

Which layer gets which format says the plan of the recipe. Weights are rounded to nearest: searching and GPTQ choose
other codes in the same format, which changes no time. Values are random, so pictures are noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.random_pipeline import build_random_pipeline
from benchmarks.torch_step import quantized_parts
from sdcompress.backends.torch.modules import cast_scales, replace_layers
from sdcompress.backends.torch.packaging import dynamic_layers, layer_formats
from sdcompress.backends.torch.quantizers import formats_of
from sdcompress.backends.torch.source_parts import empty_component
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import load_recipe, parse_recipe
from sdcompress.sources import catalog
from sdcompress.sources.source import Source
from sdcompress.sources.spec import ComponentSpec, parameter
from sdcompress.sources.tensor_names import canonical_name, name_in_model

DTYPE = torch.float16
SAFETY_CHECKER = "safety_checker"  # no part of drawing

# Changes to the configs that make each component tiny, for `--small`.
SMALL_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
SMALL_TEXT |= {"projection_dim": 32, "vocab_size": 1024}
SMALL_VAE = {"block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 16}
SMALL_VAE |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
SMALL_UNET = {"norm_num_groups": 8, "attention_head_dim": 8, "sample_size": 8, "block_out_channels": [16, 32]}
SMALL_UNET |= {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}
SMALL_UNET |= {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}
SMALL_XL = {"cross_attention_dim": 64, "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80}
SMALL: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "sd15": {"unet": {**SMALL_UNET, "cross_attention_dim": 32}, "text_encoder": SMALL_TEXT, "vae": SMALL_VAE},
    "sdxl": {
        "unet": {**SMALL_UNET, **SMALL_XL, "transformer_layers_per_block": [1, 1]},
        "text_encoder": SMALL_TEXT,
        "text_encoder_2": SMALL_TEXT,
        "vae": SMALL_VAE,
    },
}

# Contender -> name or text of its recipe. `uint4`'s neighbours in 4 bits: a palette, and NF4's levels in our packing.
_FOUR_BITS = """
schema_version: 1
description: Most of the UNet in {format}, its first, last and time layers and the other components in int8.
components:
  unet:
    - cast: {{dtype: float16}}
    - quantize:
        format: {format}
        keep_sensitive: false
        overrides:
          - {{layers: [conv_in, conv_out, time_embedding, "*.time_emb_proj"], format: int8}}
  "*":
    - cast: {{dtype: float16}}
    - quantize: {{format: int8}}
"""
PRUNED = "bk-sdm-small"
CONTENDERS: Mapping[str, str] = {
    **{name: name for name in ("int8", "int8-dynamic", "int4", "int3-gptq")},
    "codebook4": _FOUR_BITS.format(format="codebook4"),
    "normal-float4": _FOUR_BITS.format(format="normal-float4"),
    PRUNED: PRUNED,
}

Models = dict[str, nn.Module]  # component -> module


def random_source(name: str, small: bool) -> Source:
    """Return the catalog's pipeline without its safety checker; with `small` its components are tiny."""
    entry = catalog.load_entry(name)
    source = catalog.open_entry(entry, name)
    specs = {part: spec for part, spec in source.components.items() if part != SAFETY_CHECKER}
    if small:
        specs = {part: _small_spec(spec, SMALL[name][part]) for part, spec in specs.items()}
    index = {**source.model_index, **({SAFETY_CHECKER: [None, None]} if SAFETY_CHECKER in source.components else {})}
    return Source(name, "catalog", index, specs)


def _small_spec(spec: ComponentSpec, changes: Mapping[str, Any]) -> ComponentSpec:
    changed = spec.replace(config={**spec.config, **changes})
    shapes = {name: tuple(value.shape) for name, value in empty_component(changed).named_parameters()}
    names = {name: canonical_name(spec.class_name, name) for name in shapes}
    return changed.replace(tensors={names[name]: parameter(shape, "F16") for name, shape in shapes.items()})


def random_models(source: Source, device: str) -> Models:
    """Return every component with random weights, ready to infer."""
    return {part: random_module(spec, device, seed) for seed, (part, spec) in enumerate(source.components.items())}


def random_module(spec: ComponentSpec, device: str, seed: int = 0) -> nn.Module:
    """Return the component in float16; weights are scaled by their fan-in, so that activations stay finite."""
    model: nn.Module = empty_component(spec)
    kinds = dict(model.named_modules())
    generator = torch.Generator(device).manual_seed(seed)
    for name, empty in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        value = torch.zeros(empty.shape, dtype=DTYPE, device=device)
        if leaf != "bias" and isinstance(kinds[owner], nn.GroupNorm | nn.LayerNorm):
            value.fill_(1)
        elif leaf != "bias":
            spread = 0.02 if isinstance(kinds[owner], nn.Embedding) or value.dim() < 2 else value[0].numel() ** -0.5
            value.normal_(0, spread, generator=generator)
        _put(model, name, value)
    return _ready(model, device)


def compressed_models(source: Source, originals: Models, contender: str, device: str) -> Models:
    """Return what the contender's recipe makes of the originals; what it does not change is shared with them."""
    text = CONTENDERS[contender]
    recipe = parse_recipe(text, contender) if "\n" in text else load_recipe(text)
    after = make_plan(recipe, source).components_after
    return {part: _compressed(after[part], source.components[part], originals[part], device) for part in originals}


def _compressed(after: ComponentSpec, before: ComponentSpec, original: nn.Module, device: str) -> nn.Module:
    labels = layer_formats(after.config)
    if labels is None:
        return original if after.tensors.keys() == before.tensors.keys() else random_module(after, device)
    model: nn.Module = empty_component(after)
    formats = formats_of(labels)
    replace_layers(model, formats, dynamic_layers(after.config))
    for name, _ in list(model.named_parameters()):
        _put(model, name, original.get_parameter(name))
    for layer, fmt in formats.items():
        place = name_in_model(model, layer)
        assert place is not None
        weight = original.get_submodule(place).weight
        assert isinstance(weight, torch.Tensor)
        for part, value in quantized_parts(weight.detach(), fmt).items():
            setattr(model.get_submodule(place), part, value)
    cast_scales(model)
    return _ready(model, device)


def _put(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Make the tensor the model's parameter of that name, frozen; a parameter is shared, not copied."""
    owner, _, leaf = name.rpartition(".")
    shared = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
    setattr(model.get_submodule(owner), leaf, shared)


def _ready(model: nn.Module, device: str) -> nn.Module:
    return model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


def random_pipeline(source: Source, models: Models, folder: Path) -> Any:
    """Return the diffusers pipeline of these components; its tokenizers and scheduler go to `folder`."""
    import diffusers

    build_random_pipeline(source.name, folder, components=[])
    absent = {} if source.name == "sdxl" else {SAFETY_CHECKER: None, "feature_extractor": None}
    pipeline_class = getattr(diffusers, source.pipeline_class)
    pipeline = pipeline_class.from_pretrained(folder, local_files_only=True, **models, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def step_inputs(source: Source, device: str) -> dict[str, Any]:
    """Return what the UNet is given in a step with guidance: two latents, one timestep, two texts of 77 tokens."""
    config = source.components["unet"].config
    generator = torch.Generator("cpu").manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, DTYPE)

    size, width = config["sample_size"], config["cross_attention_dim"]
    inputs: dict[str, Any] = {
        "sample": random(2, config["in_channels"], size, size).contiguous(memory_format=torch.channels_last),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": random(2, 77, width),
    }
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        sizes = torch.tensor([[8.0 * size, 8.0 * size, 0, 0, 8.0 * size, 8.0 * size]] * 2)
        inputs["added_cond_kwargs"] = {"text_embeds": random(2, pooled), "time_ids": sizes.to(device, DTYPE)}
    return inputs


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of the parameters and buffers that the model's files would hold."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
