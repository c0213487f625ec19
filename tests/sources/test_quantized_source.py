"""Components that come quantized: recognised, refused by recipes that would quantize them again, kept by others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from original_layout import UNET, prefixed, sd1_checkpoint
from safetensors.torch import load_file, save_file

from sdcompress.backends.open_pipeline import open_pipeline
from sdcompress.errors import RecipeError, SourceError
from sdcompress.execution.execute import execute
from sdcompress.execution.verify import verify
from sdcompress.files.torch_tensors import read_tensor
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import Recipe, load_recipe, parse_recipe
from sdcompress.sources.inspect_model import describe
from sdcompress.sources.opening import open_folder, open_source
from sdcompress.sources.quantized_source import quantized_as
from sdcompress.sources.spec import ComponentSpec, parameter

REST = """
schema_version: 1
description: All but the UNet.
components:
  text_encoder|vae:
    - quantize: {format: int8}
"""


def rest_recipe() -> Recipe:
    return parse_recipe(REST, "here")


def make_fp8(file: Path) -> None:
    state = load_file(file)
    save_file({name: t.to(torch.float8_e4m3fn) if t.ndim > 1 else t for name, t in state.items()}, file)


def test_what_a_component_is_quantized_as() -> None:
    for quantization, dtype, words in (
        (None, "F16", None),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "U8",
            "bitsandbytes nf4",
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "I8", "bitsandbytes int8"),
        ({"quant_method": "torchao", "quant_type": "int8wo"}, "F16", "torchao int8wo"),
        ({"quant_method": "torchao", "quant_type": {"default": {}}}, "F16", "torchao"),
        ({"quant_method": "quanto", "weights_dtype": "int8"}, "I8", "quanto int8"),
        ({"quant_method": "gguf"}, "U8", "gguf"),
        ({"quant_method": "sdcompress", "layers": {"a": {}}}, "I8", "sdcompress"),
        ({"quant_method": "sdcompress", "layers": {}, "pruning": {}}, "F16", None),
        (None, "F8_E4M3", "fp8 (e4m3)"),
        (None, "I8", "8-bit integers"),
    ):
        config = {"quantization_config": quantization} if quantization else {}
        spec = ComponentSpec("unet", "diffusers", "X", config, {"a.weight": parameter((2, 2), dtype)})
        assert quantized_as(spec) == words


@pytest.mark.parametrize("recipe", ["nf4", "int8"])
def test_an_artifact_is_not_quantized_again_but_kept(recipe: str, nano_folder: Path, tmp_path: Path) -> None:
    if recipe == "nf4":
        pytest.importorskip("bitsandbytes")
    text = REST.replace("text_encoder|vae", "unet").replace("int8", recipe)
    execute(make_plan(parse_recipe(text, "here"), open_folder(nano_folder)), tmp_path / "first")
    source = open_folder(tmp_path / "first")
    words = "bitsandbytes nf4" if recipe == "nf4" else "sdcompress"
    assert any(note.startswith(f"unet is quantized already ({words})") for note in describe(source)["notes"])
    with pytest.raises(RecipeError) as caught:
        make_plan(load_recipe("int4"), source)
    assert f"unet is quantized already ({words}); start from the original weights, or leave unet out" in str(
        caught.value
    )
    with pytest.raises(RecipeError, match=r"components \(unet in none\): unet is quantized already .* ONNX"):
        make_plan(parse_recipe(REST.replace("components", "target: onnx\ncomponents"), "here"), source)

    out = tmp_path / "second"
    execute(make_plan(rest_recipe(), source), out)
    for name in (UNET, "config.json"):
        assert (out / "unet" / name).read_bytes() == (tmp_path / "first" / "unet" / name).read_bytes()
    assert verify(out, load=False) == []
    open_pipeline(out)


def test_fp8_weights_are_kept(nano_copy: Path, tmp_path: Path) -> None:
    make_fp8(nano_copy / "unet" / UNET)
    source = open_folder(nano_copy)
    with pytest.raises(RecipeError, match=r"unet is quantized already \(fp8 \(e4m3\)\)"):
        make_plan(load_recipe("int8"), source)
    execute(make_plan(rest_recipe(), source), tmp_path / "out")
    assert (tmp_path / "out" / "unet" / UNET).read_bytes() == (nano_copy / "unet" / UNET).read_bytes()
    pipeline = open_pipeline(tmp_path / "out")
    wanted = load_file(nano_copy / "unet" / UNET)["conv_in.weight"].float()
    assert torch.equal(pipeline.unet.conv_in.weight, wanted)  # every fp8 number is a float32 number


def test_shards_of_a_variant_are_kept_under_plain_names(nano_copy: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    make_fp8(nano_copy / "unet" / UNET)
    state = load_file(nano_copy / "unet" / UNET)
    (nano_copy / "unet" / UNET).unlink()
    names = [f"diffusion_pytorch_model.fp8-0000{i}-of-00002.safetensors" for i in (1, 2)]
    parts = [dict(list(state.items())[i::2]) for i in range(2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, nano_copy / "unet" / name, {"format": "pt", "of": "another tool"})
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = nano_copy / "unet" / "diffusion_pytorch_model.safetensors.index.fp8.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    execute(make_plan(rest_recipe(), open_folder(nano_copy)), tmp_path / "out")
    for name in names:
        copied = tmp_path / "out" / "unet" / name.replace(".fp8", "")
        assert copied.read_bytes() == (nano_copy / "unet" / name).read_bytes()
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet", torch_dtype=torch.float32)
    assert torch.equal(unet.conv_in.weight, state["conv_in.weight"].float())


def test_a_checkpoint_in_fp8(nano_folder: Path, tmp_path: Path) -> None:
    state = sd1_checkpoint(nano_folder)
    fp8 = {
        name: tensor.to(torch.float8_e4m3fn) if name.startswith("model.") and tensor.ndim > 1 else tensor
        for name, tensor in state.items()
    }
    file = tmp_path / "fp8.safetensors"
    save_file(fp8, file)
    source = open_source(str(file), like=str(nano_folder))
    with pytest.raises(RecipeError, match=r"unet is quantized already \(fp8 \(e4m3\)\)"):
        make_plan(load_recipe("int8"), source)
    execute(make_plan(rest_recipe(), source), tmp_path / "out")
    kept = open_folder(tmp_path / "out").tensors["unet"]
    for name, tensor in load_file(nano_folder / "unet" / UNET).items():
        wanted = tensor.to(torch.float8_e4m3fn).view(torch.uint8) if tensor.ndim > 1 else tensor
        found = read_tensor(kept[name])
        assert torch.equal(found.view(wanted.dtype), wanted), name

    scaled = fp8 | prefixed("model.diffusion_model.", {"input_blocks.0.0.scale_weight": torch.ones(1)})
    save_file(scaled, file)
    with pytest.raises(
        SourceError, match=r"its scales \(model.diffusion_model.input_blocks.0.0.scale_weight\) have no"
    ):
        open_source(str(file), like=str(nano_folder))


def test_gguf(nano_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    (tmp_path / "model.safetensors").write_bytes(b"GGUF" + bytes(20))
    for name in ("model.gguf", "model.safetensors"):
        with pytest.raises(SourceError, match="is a GGUF file, whose weights are quantized already; start from"):
            open_source(str(tmp_path / name))
    (nano_copy / "unet" / UNET).unlink()
    (nano_copy / "unet" / "unet-Q4_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=r"has only GGUF weights \(unet-Q4_0.gguf\), quantized already"):
        open_folder(nano_copy)
