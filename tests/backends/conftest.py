"""ONNX folders for the tests of the runtime: tiny-sd and a random SDXL, exported once a session."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdcompress.source import ASSETS

SEQUENCE = {0: "batch", 1: "sequence"}
PICTURE = {0: "batch", 2: "height", 3: "width"}


@pytest.fixture(scope="session")
def onnx_tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-sd as an ONNX folder in float32, safety checker included; do not write into it."""
    from diffusers import StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("onnx") / "tiny-sd"
    export_pipeline(StableDiffusionPipeline.from_pretrained(ASSETS / "tiny-sd"), folder)
    return folder


@pytest.fixture(scope="session")
def nano_sdxl(nano_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random float32 SDXL with guidance embedding (as LCM has it), about 1 M parameters; do not write into it."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        time_cond_proj_dim=16,
    )
    text = CLIPTextConfig(
        vocab_size=78,
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    tokenizer = CLIPTokenizer.from_pretrained(nano_folder / "tokenizer")
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(nano_folder / "vae"),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        add_watermarker=False,
    )
    folder = tmp_path_factory.mktemp("models") / "nano-sdxl"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def onnx_nano_sdxl(nano_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`nano_sdxl` as an ONNX folder."""
    from diffusers import StableDiffusionXLPipeline

    folder = tmp_path_factory.mktemp("onnx") / "nano-sdxl"
    export_pipeline(StableDiffusionXLPipeline.from_pretrained(nano_sdxl, add_watermarker=False), folder)
    return folder


def export_pipeline(pipeline: Any, folder: Path) -> None:
    """Writes the pipeline to `folder` as ONNX artifacts are laid out."""
    pytest.importorskip("onnx", reason="onnx is not installed (pip install 'sdcompress[onnx]')")
    pipeline.save_config(folder)
    for name, component in pipeline.components.items():
        if hasattr(component, "save_pretrained") and not hasattr(component, "parameters"):
            component.save_pretrained(folder / name)
    for name in ("text_encoder", "text_encoder_2"):
        if name in pipeline.components:
            _export_text_encoder(getattr(pipeline, name), folder / name)
    _export_unet(pipeline.unet, folder / "unet")
    scale = pipeline.vae_scale_factor
    latents = _random(2, pipeline.vae.config.latent_channels, 8, 8)
    _export(
        folder / "vae_encoder",
        pipeline.vae,
        lambda vae, sample: vae.quant_conv(vae.encoder(sample)),
        {"sample": (_random(2, 3, 8 * scale, 8 * scale), PICTURE)},
        ["latent_parameters"],
    )
    _export(
        folder / "vae_decoder",
        pipeline.vae,
        lambda vae, latent_sample: vae.decoder(vae.post_quant_conv(latent_sample)),
        {"latent_sample": (latents, PICTURE)},
        ["sample"],
    )
    if pipeline.components.get("safety_checker") is not None:
        size = pipeline.feature_extractor.crop_size["height"]
        _export(
            folder / "safety_checker",
            pipeline.safety_checker,
            _check_safety,
            {
                "clip_input": (_random(2, 3, size, size), {0: "batch"}),
                "images": (_random(2, 64, 64, 3), {0: "batch", 1: "height", 2: "width"}),
            },
            ["out_images", "has_nsfw_concepts"],
        )


def _check_safety(checker: Any, clip_input: Any, images: Any) -> tuple[Any, Any]:
    # forward_onnx's own blackening, by a mask as index, is traced wrongly for a batch of other than one.
    _, flags = checker.forward_onnx(clip_input, images.clone())
    return images * (~flags)[:, None, None, None], flags


def _export_text_encoder(encoder: Any, folder: Path) -> None:
    import torch

    projects = hasattr(encoder, "text_projection")
    outputs = ["text_embeds", "last_hidden_state"] if projects else ["last_hidden_state", "pooler_output"]
    config = encoder.config
    words = torch.full((2, config.max_position_embeddings), config.eos_token_id)
    words[:, :4] = torch.arange(4) + 2

    def compute(encoder: Any, input_ids: Any) -> tuple[Any, ...]:
        out = encoder(input_ids, output_hidden_states=True)
        return (*(getattr(out, name) for name in outputs), *out.hidden_states[:-1])

    layers = [f"hidden_states.{index}" for index in range(config.num_hidden_layers)]
    _export(folder, encoder, compute, {"input_ids": (words, SEQUENCE)}, [*outputs, *layers])


def _export_unet(unet: Any, folder: Path) -> None:
    import torch

    config, batch = unet.config, {0: "batch"}
    inputs = {
        "sample": (_random(2, config.in_channels, 8, 8), PICTURE),
        "timestep": (torch.tensor(1.0), {}),
        "encoder_hidden_states": (_random(2, 16, config.cross_attention_dim), SEQUENCE),
    }
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = (_random(2, config.time_cond_proj_dim), batch)
    if config.addition_embed_type == "text_time":
        inputs["text_embeds"] = (_random(2, 32), batch)
        inputs["time_ids"] = (_random(2, 6), batch)
    names = list(inputs)

    def compute(unet: Any, *values: Any) -> Any:
        given = dict(zip(names, values, strict=True))
        added = {name: given.pop(name) for name in ("text_embeds", "time_ids") if name in given}
        return unet(**given, added_cond_kwargs=added or None, return_dict=False)[0]

    _export(folder, unet, compute, inputs, ["out_sample"])


def _export(
    folder: Path,
    module: Any,
    compute: Callable[..., Any],
    inputs: dict[str, tuple[Any, dict[int, str]]],
    outputs: list[str],
) -> None:
    import onnx
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = module

        def forward(self, *values: Any) -> Any:
            return compute(self.part, *values)

    folder.mkdir()
    if hasattr(module, "save_config"):
        module.save_config(folder)
    else:
        module.config.save_pretrained(folder)
    file = folder / "model.onnx"
    torch.onnx.export(  # by tracing, in a tenth of the newer exporter's time
        Wrapped().eval(),
        tuple(value for value, _ in inputs.values()),
        str(file),
        dynamo=False,
        opset_version=18,
        do_constant_folding=False,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_axes={name: axes for name, (_, axes) in inputs.items() if axes},
    )
    model = onnx.load(str(file))
    parameters = {f"part.{name}": value.numel() for name, value in module.named_parameters()}
    held = {tensor.name: parameters[tensor.name] for tensor in model.graph.initializer if tensor.name in parameters}
    model.metadata_props.add(key="sdcompress", value=json.dumps({"parameters": held}))
    file.unlink()
    onnx.save_model(model, str(file), save_as_external_data=True, location="model.onnx_data", size_threshold=1024)


def _random(*shape: int) -> Any:
    import torch

    return torch.rand(shape, generator=torch.Generator().manual_seed(0))
