"""Checkpoints in the original layouts: the same pipeline as the diffusers folder they were made from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from original_layout import (
    TEXT,
    UNET,
    State,
    clip_to_open_clip,
    prefixed,
    sd1_checkpoint,
    unet_to_original,
    vae_to_original,
)
from safetensors.torch import load_file, save_file

from sdcompress import compress
from sdcompress.backends.open_pipeline import open_pipeline
from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import read_header
from sdcompress.files.torch_tensors import read_tensor
from sdcompress.sources.opening import open_folder, open_source
from sdcompress.sources.single_file.conversion import find_component
from sdcompress.sources.single_file.layouts import detect_layout
from sdcompress.sources.source import Source
from sdcompress.sources.spec import ComponentSpec, parameter


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(nano_folder: Path, tmp_path: Path) -> Path:
    file = tmp_path / "nano.safetensors"
    save_file(sd1_checkpoint(nano_folder), file)
    return file


def tensors_of(source: Source, component: str) -> State:
    return {name: read_tensor(where) for name, where in source.tensors[component].items()}


def assert_same_pipeline(source: Source, folder: Path) -> None:
    """Every component of the folder is in the source with the same config, and every tensor with the same bytes."""
    wanted = open_folder(folder)
    assert source.components == wanted.components and list(source.components) == list(wanted.components)
    for component in wanted.components:
        theirs, ours = tensors_of(wanted, component), tensors_of(source, component)
        assert theirs.keys() == ours.keys()
        for name in theirs:
            assert torch.equal(theirs[name], ours[name]), f"{component}.{name}"


@pytest.mark.smoke
def test_sd1_is_the_same_pipeline(checkpoint: Path, nano_folder: Path) -> None:
    source = open_source(str(checkpoint), like=str(nano_folder))
    assert (source.kind, source.pipeline_class) == ("single-file", "StableDiffusionPipeline")
    assert_same_pipeline(source, nano_folder)
    assert not any("belong to none" in note for note in source.notes)
    pictures = []
    for pipeline in (open_pipeline(nano_folder), open_pipeline(checkpoint, like=str(nano_folder))):
        generator = torch.Generator().manual_seed(0)
        pictures.append(pipeline("a cat", num_inference_steps=2, generator=generator, output_type="pt").images)
    assert torch.equal(*pictures)  # the same code runs on the same weights


def test_text_encoders_without_their_outermost_module(nano_folder: Path, tmp_path: Path) -> None:
    state = {name.replace(".text_model.", "."): tensor for name, tensor in sd1_checkpoint(nano_folder).items()}
    save_file(state, tmp_path / "short.safetensors")
    assert_same_pipeline(open_source(str(tmp_path / "short.safetensors"), like=str(nano_folder)), nano_folder)


def test_diffusers_converts_it_to_the_same_tensors(checkpoint: Path, nano_folder: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    source = open_source(str(checkpoint), like=str(nano_folder))
    for component, model_class in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        model = model_class.from_single_file(
            str(checkpoint), config=str(nano_folder), subfolder=component, local_files_only=True
        )
        theirs, ours = model.state_dict(), tensors_of(source, component)
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_configs_folder_needs_no_weights(checkpoint: Path, nano_copy: Path, nano_folder: Path) -> None:
    for file in nano_copy.rglob("*.safetensors"):
        file.unlink()
    assert_same_pipeline(open_source(str(checkpoint), like=str(nano_copy)), nano_folder)


@pytest.mark.parametrize(
    "recipe",
    ["int8", pytest.param("int4-gptq", marks=pytest.mark.full), pytest.param("onnx-int8", marks=pytest.mark.full)],
)
def test_compressing_it_is_compressing_the_folder(
    recipe: str, checkpoint: Path, nano_folder: Path, tmp_path: Path
) -> None:
    if recipe.startswith("onnx"):
        pytest.importorskip("onnxscript")
    sources = {"file": open_source(str(checkpoint), like=str(nano_folder)), "folder": open_folder(nano_folder)}
    written = []
    for name, source in sources.items():
        compress(source, recipe, tmp_path / name)
        files = (file for file in (tmp_path / name).rglob("*") if file.is_file())
        written.append({file.relative_to(tmp_path / name).as_posix(): file for file in files})
    assert written[0].keys() == written[1].keys()  # the tokenizer too, and no checkpoint.json
    for name in written[0]:
        if name.endswith((".safetensors", ".onnx", ".onnx_data")):
            assert written[0][name].read_bytes() == written[1][name].read_bytes()


def test_inspect_by_command(nano_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sdcompress.cli.main import app

    torch.save({"state_dict": sd1_checkpoint(nano_folder)}, tmp_path / "nano.ckpt")
    arguments = ["inspect", str(tmp_path / "nano.ckpt"), "--json", "--like", str(nano_folder)]
    with pytest.raises(SourceError, match="--allow-pickle"):
        app(arguments, standalone_mode=False)
    app([*arguments, "--allow-pickle", "--prediction", "v_prediction"], standalone_mode=False)
    described = json.loads(capsys.readouterr().out)
    assert described["kind"] == "single-file"
    assert described["components"]["unet"]["parameters"] == open_folder(nano_folder).components["unet"].parameters
    assert "the scheduler is set to prediction_type v_prediction" in described["notes"]


@pytest.mark.full
def test_evaluate_by_command(checkpoint: Path, nano_folder: Path, nano_copy: Path, tmp_path: Path) -> None:
    """A checkpoint against a folder that has a variant alone: each child opens what its parent found."""
    from sdcompress.cli.main import app

    for file in sorted(nano_copy.rglob("*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    arguments = ["evaluate", str(checkpoint), str(nano_copy), "--out", str(tmp_path / "out")]
    drawing = ["--count", "1", "--steps", "1", "--no-clip", "--noise-floor", "none", "--no-component-metrics"]
    app([*arguments, "--like", str(nano_folder), *drawing], standalone_mode=False)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    original, compressed = (report[side] for side in ("original", "compressed"))
    assert original["parameters"] == compressed["parameters"]
    assert original["size_bytes"] > checkpoint.stat().st_size  # and the small files
    similarity = report["similarity"]
    assert (similarity["pairs"], similarity["identical"]) == (1, 1)  # the same code runs on the same weights


# Layouts with OpenCLIP's text encoders


def test_sdxl_is_the_same_pipeline(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    xl_folder = family_folder("sdxl")
    state = {
        **prefixed("model.diffusion_model.", unet_to_original(load_file(xl_folder / "unet" / UNET), 2, 1)),
        **prefixed("first_stage_model.", vae_to_original(load_file(xl_folder / "vae" / UNET), levels=2)),
        **prefixed("conditioner.embedders.0.transformer.", load_file(xl_folder / "text_encoder" / TEXT)),
        **prefixed("conditioner.embedders.1.model.", clip_to_open_clip(load_file(xl_folder / "text_encoder_2" / TEXT))),
        "conditioner.embedders.1.model.logit_scale": torch.ones(()),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(16)[None],
        "something.else": torch.ones(1),
    }
    save_file(state, tmp_path / "xl.safetensors")
    source = open_source(str(tmp_path / "xl.safetensors"), like=str(xl_folder))
    assert_same_pipeline(source, xl_folder)
    assert any("1 of the file's tensors" in note and "something.else" in note for note in source.notes)


def test_sd2_ignores_the_layer_its_text_encoder_does_without(nano_folder: Path, tmp_path: Path) -> None:
    prefix = "cond_stage_model.transformer."
    state = sd1_checkpoint(nano_folder)
    text = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
    text = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in text.items()}
    last = {name.replace("layers.1", "layers.2"): tensor + 1 for name, tensor in text.items() if "layers.1" in name}
    state |= prefixed("cond_stage_model.model.", clip_to_open_clip({**text, **last}))
    save_file(state, tmp_path / "sd2.safetensors")
    source = open_source(str(tmp_path / "sd2.safetensors"), like=str(nano_folder))
    assert "Stable Diffusion 2.x" in source.notes[0]
    assert_same_pipeline(source, nano_folder)


# Transformers: diffusers' own converters are the independent path


def linear(state: State, prefix: str, shapes: Mapping[str, tuple[int, int]]) -> None:
    for name, (rows, columns) in shapes.items():
        state[f"{prefix}{name}.weight"] = torch.randn(rows, columns)
        state[f"{prefix}{name}.bias"] = torch.randn(rows)


def flux_checkpoint(width: int = 3072, head: int = 8) -> State:
    """FLUX' transformer in Black Forest Labs' layout: one double block, two single blocks.

    diffusers' converter takes its width for granted, so matrices have that many rows and only two columns.
    """
    torch.manual_seed(3)
    state: State = {}
    embedders = [f"{name}.{layer}_layer" for name in ("time_in", "vector_in", "guidance_in") for layer in ("in", "out")]
    linear(state, "", dict.fromkeys(("img_in", "txt_in", *embedders), (width, 2)))
    linear(state, "final_layer.", {"linear": (8, 2), "adaLN_modulation.1": (2 * width, 2)})
    double = {"_mod.lin": 6, "_attn.qkv": 3, "_attn.proj": 1, "_mlp.0": 4, "_mlp.2": 1}
    single = {"modulation.lin": 3, "linear1": 7, "linear2": 1}
    for block, multiples, norm in (
        ("double_blocks.0.img", double, "_attn.norm"),
        ("double_blocks.0.txt", double, "_attn.norm"),
        ("single_blocks.0.", single, "norm"),
        ("single_blocks.1.", single, "norm"),
    ):
        linear(state, block, {name: (multiple * width, 2) for name, multiple in multiples.items()})
        state |= {f"{block}{norm}.{part}_norm.scale": torch.randn(head) for part in ("query", "key")}
    return state


def sd3_checkpoint(width: int = 16, head: int = 8) -> State:
    """Stable Diffusion 3's transformer in Stability's layout: two blocks with normed queries and keys, as 3.5 has."""
    torch.manual_seed(4)
    state: State = {"pos_embed": torch.randn(1, 16, width), "x_embedder.proj.weight": torch.randn(width, 4, 2, 2)}
    state["x_embedder.proj.bias"] = torch.randn(width)
    linear(state, "", {
        "t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width), "y_embedder.mlp.0": (width, 10),
        "y_embedder.mlp.2": (width, width), "context_embedder": (width, 12), "final_layer.linear": (16, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    })  # fmt: skip
    for block in (f"joint_blocks.{index}.{side}" for index in range(2) for side in ("x_block", "context_block")):
        last = block == "joint_blocks.1.context_block"
        linear(state, block, {".adaLN_modulation.1": ((2 if last else 6) * width, width), ".attn.qkv": (48, width)})
        state |= {f"{block}.attn.{norm}.weight": torch.randn(head) for norm in ("ln_q", "ln_k")}
        if not last:
            linear(state, block, {".attn.proj": (width, width), ".mlp.fc1": (64, width), ".mlp.fc2": (width, 64)})
    return state


@pytest.mark.parametrize(
    ("write", "convert", "config"),
    [
        (flux_checkpoint, "convert_flux_transformer_checkpoint_to_diffusers", {"num_layers": 1}),
        (sd3_checkpoint, "convert_sd3_transformer_checkpoint_to_diffusers", {"num_layers": 2}),
    ],
    ids=["flux", "sd3"],
)
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_transformers_are_what_diffusers_makes_of_them(
    write: Callable[[], State], convert: str, config: Mapping[str, Any], prefix: str, tmp_path: Path
) -> None:
    from diffusers.loaders import single_file_utils

    state = write()
    theirs = getattr(single_file_utils, convert)({name: tensor.clone() for name, tensor in state.items()})
    file = tmp_path / "transformer.safetensors"
    save_file(prefixed(prefix, state), file)
    ranges = read_header(file)
    specs = {name: parameter(tuple(tensor.shape), "F32") for name, tensor in theirs.items()}
    layout = detect_layout(file, ranges).components["transformer"]
    found = find_component(ComponentSpec("transformer", "diffusers", "", config, specs), layout, ranges)
    assert found is not None and found.problem is None
    assert found.names == set(ranges)
    for name, tensor in theirs.items():
        assert torch.equal(read_tensor(found.ranges[name]), tensor), name


# What the file lacks, and what it is not


def test_what_a_file_lacks_comes_from_the_folder_with_weights(
    nano_folder: Path, nano_copy: Path, tmp_path: Path
) -> None:
    state = {name: tensor for name, tensor in sd1_checkpoint(nano_folder).items() if name.startswith("model.")}
    save_file(state, tmp_path / "unet.safetensors")
    source = open_source(str(tmp_path / "unet.safetensors"), like=str(nano_folder))
    assert_same_pipeline(source, nano_folder)
    assert any(note.startswith("the file has no vae: it is that of") for note in source.notes)
    for file in nano_copy.glob("vae/*.safetensors"):
        file.unlink()
    with pytest.raises(SourceError, match="has no vae; name a diffusers folder that has the weights with --like"):
        open_source(str(tmp_path / "unet.safetensors"), like=str(nano_copy))


def test_another_architecture_is_refused(checkpoint: Path) -> None:
    with pytest.raises(SourceError, match=r"token_embedding.weight \[49408, 768\], so its text_encoder .* --like"):
        open_source(str(checkpoint))
    with pytest.raises(SourceError, match=r"--like sd51: no such folder, .* sd15"):
        open_source(str(checkpoint), like="sd51")


def test_options_that_do_not_apply_are_refused(checkpoint: Path, nano_folder: Path) -> None:
    with pytest.raises(SourceError, match="--variant fp16: does not apply to a checkpoint file"):
        open_source(str(checkpoint), "fp16", like=str(nano_folder))
    with pytest.raises(SourceError, match="--like sd15: does not apply to a folder"):
        open_source(str(nano_folder), like="sd15")


def test_a_file_that_changed_is_not_opened_as_what_it_was(checkpoint: Path, nano_folder: Path) -> None:
    source = open_source(str(checkpoint), like=str(nano_folder))
    assert source.path is not None
    again = open_folder(source.path)
    assert (again.kind, again.components) == ("single-file", source.components)
    save_file({name: tensor + 1 for name, tensor in load_file(checkpoint).items()}, checkpoint)
    os.utime(checkpoint, ns=(1, 1))
    with pytest.raises(SourceError, match=r"has changed since .* was written"):
        open_folder(source.path)
