"""Pipelines from folders: good ones in every layout, and bad ones, each with a message that says what to do."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import DTYPE_BYTES, StreamWriter
from sdcompress.sources.opening import open_folder, open_source
from sdcompress.sources.weight_files import choose_weight_files, is_weight_file

UNET, TEXT = "diffusion_pytorch_model", "model"


def write_weights(file: Path, dtype: str = "F16", **tensors: tuple[int, ...]) -> None:
    named = {name.replace("__", "."): shape for name, shape in tensors.items()}
    with StreamWriter(file, {name: (dtype, shape) for name, shape in named.items()}, {}) as writer:
        for name, shape in named.items():
            writer.write(name, bytes(math.prod(shape) * DTYPE_BYTES[dtype]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole pipeline: UNet and text encoder with weights, tokenizer and scheduler without."""
    path = tmp_path / "pipeline"
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
    }
    for part in ("scheduler", "text_encoder", "tokenizer", "unet"):
        (path / part).mkdir(parents=True)
    write_json(path / "model_index.json", index)
    write_json(path / "scheduler" / "scheduler_config.json", {})
    write_json(path / "tokenizer" / "vocab.json", {})
    for part, name in (("unet", UNET), ("text_encoder", TEXT)):
        write_json(path / part / "config.json", {"of": part})
        write_weights(path / part / f"{name}.safetensors", fc__weight=(8, 4), fc__bias=(8,))
    return path


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))


def refusal(folder: Path, variant: str | None = None) -> str:
    with pytest.raises(SourceError) as caught:
        open_folder(folder, variant=variant)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_whole_folder(folder: Path) -> None:
    source = open_source(str(folder))
    assert (source.kind, source.path, source.pipeline_class) == ("folder", folder, "StableDiffusionPipeline")
    assert sorted(source.components) == ["text_encoder", "unet"]
    assert source.components["unet"].config == {"of": "unet"}
    assert source.parameters == 2 * 40
    assert source.weights_bytes == 2 * 80
    assert {str(file) for file in source.other_files} == {
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/vocab.json",
        "unet/config.json",
    }  # fmt: skip
    assert source.size_bytes == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_buffers_are_stored_but_no_parameters(folder: Path) -> None:
    write_weights(
        folder / "text_encoder" / f"{TEXT}.safetensors", "I64", embeddings__position_ids=(1, 77), fc__weight=(2, 2)
    )
    text = open_folder(folder).components["text_encoder"]
    assert (text.parameters, text.weights_bytes) == (4, 8 * 81)


def test_old_vae_names_are_read_as_todays(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    write_json(folder / "model_index.json", {**index, "unet": ["diffusers", "AutoencoderKL"]})
    old = {
        f"decoder__mid_block__attentions__0__{name}__weight": (4, 4) for name in ("query", "proj_attn", "group_norm")
    }
    write_weights(folder / "unet" / f"{UNET}.safetensors", **old)
    source = open_folder(folder)
    prefix = "decoder.mid_block.attentions.0"
    wanted = {f"{prefix}.to_q.weight", f"{prefix}.to_out.0.weight", f"{prefix}.group_norm.weight"}
    assert set(source.components["unet"].tensors) == set(source.tensors["unet"]) == wanted


def test_shards_with_their_index(folder: Path) -> None:
    (folder / "unet" / f"{UNET}.safetensors").unlink()
    shards = [f"{UNET}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    write_weights(folder / "unet" / shards[0], a__weight=(2, 2))
    write_weights(folder / "unet" / shards[1], b__weight=(3, 3))
    index = {"weight_map": {"a.weight": shards[0], "b.weight": shards[1]}}
    write_json(folder / "unet" / f"{UNET}.safetensors.index.json", index)
    source = open_folder(folder)
    assert source.components["unet"].parameters == 13
    assert not any("index" in file.name for file in source.other_files if file.parent.name == "unet")

    index["weight_map"]["c.weight"] = shards[1]
    write_json(folder / "unet" / f"{UNET}.safetensors.index.json", index)
    message = refusal(folder)
    assert "lists c.weight, which no shard holds" in message
    assert "download" in message

    (folder / "unet" / shards[1]).unlink()
    message = refusal(folder)
    assert message.startswith(str(folder / "unet"))
    assert "1 of 2 shards are there; download the rest" in message

    (folder / "unet" / shards[0]).unlink()
    assert "has a weights index but no safetensors shard; download" in refusal(folder)


def test_plain_weights_win_over_variants_unless_one_is_asked_for(folder: Path) -> None:
    write_weights(folder / "unet" / f"{UNET}.fp16.safetensors", x=(3,))
    write_weights(folder / "unet" / f"{UNET}.non_ema.safetensors", y=(5,))
    assert open_folder(folder).components["unet"].parameters == 40
    assert open_folder(folder, variant="fp16").components["unet"].parameters == 3
    assert open_folder(folder, variant="fp16").components["text_encoder"].parameters == 40  # has no variants
    message = refusal(folder, variant="int4")
    assert str(folder / "unet") in message
    assert "no variant 'int4' among its safetensors ('', 'fp16', 'non_ema')" in message

    (folder / "unet" / f"{UNET}.safetensors").unlink()
    message = refusal(folder)
    assert message == f"{folder / 'unet'}: several variants (fp16, non_ema); choose one with --variant"
    (folder / "unet" / f"{UNET}.non_ema.safetensors").unlink()
    assert open_folder(folder).components["unet"].parameters == 3  # a lone variant


def test_a_variant_is_remembered_for_whoever_opens_the_folder(folder: Path) -> None:
    assert "variant" not in open_folder(folder).options
    write_weights(folder / "unet" / f"{UNET}.fp16.safetensors", x=(3,))
    assert "variant" not in open_folder(folder).options
    assert open_folder(folder, variant="fp16").options["variant"] == "fp16"
    (folder / "unet" / f"{UNET}.safetensors").unlink()
    assert open_folder(folder).options["variant"] == "fp16"


def test_several_files_of_one_variant(folder: Path) -> None:
    write_weights(folder / "unet" / "other.safetensors", x=(3,))
    assert f"several safetensors files ({UNET}.safetensors, other.safetensors); keep the one" in refusal(folder)


def test_no_pipeline(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: is no pipeline (it has no model_index.json)")
    assert "give the folder" in message


@pytest.mark.parametrize(
    ("text", "says"), [("{", "is not valid JSON"), ("[]", "is not a JSON object"), ("\0", "is not valid JSON")]
)
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "sdcompress.json"])
def test_broken_json(folder: Path, file: str, text: str, says: str) -> None:
    (folder / file).write_text(text)
    message = refusal(folder)
    assert message.startswith(f"{folder / file}: {says}")


def test_a_manifest_of_another_shape(folder: Path) -> None:
    write_json(folder / "sdcompress.json", {"components": ["unet"]})
    assert refusal(folder).startswith(f"{folder / 'sdcompress.json'}: ")


def test_a_component_that_is_missing(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    message = refusal(folder)
    assert message.startswith(f"{folder / 'unet'}: missing, though model_index.json lists unet (UNet2DConditionModel)")
    assert "download" in message


def test_weights_that_are_missing(folder: Path) -> None:
    (folder / "unet" / f"{UNET}.safetensors").unlink()
    assert refusal(folder) == f"{folder / 'unet'}: has a config.json but no weights; download the folder again"


def test_a_config_that_is_missing(folder: Path) -> None:
    (folder / "unet" / "config.json").unlink()
    message = refusal(folder)
    assert message.startswith(f"{folder / 'unet'}: has weights but no config.json")
    assert "download" in message


def test_pickles_alone(folder: Path) -> None:
    weights = folder / "unet" / f"{UNET}.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    message = refusal(folder)
    assert message.startswith(f"{folder / 'unet'}: has only pickled weights ({UNET}.bin)")
    assert "safe_serialization=True" in message


def test_pickles_beside_safetensors_do_not_matter(folder: Path) -> None:
    (folder / "unet" / f"{UNET}.bin").write_bytes(b"pickle")
    source = open_folder(folder)
    assert source.components["unet"].parameters == 40
    assert not any(file.suffix == ".bin" for file in source.other_files)


def test_nothing_with_weights(folder: Path) -> None:
    write_json(folder / "model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]})
    message = refusal(folder)
    assert message.startswith(f"{folder}: ")
    assert "no component has safetensors weights" in message


@pytest.mark.parametrize("kept", [0, 20, -1])
def test_truncated_weights(folder: Path, kept: int) -> None:
    file = folder / "unet" / f"{UNET}.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(folder)
    assert message.startswith(f"{file}: ")
    assert "truncated" in message
    assert "download or save the file again" in message


def test_corrupt_weights(folder: Path) -> None:
    file = folder / "text_encoder" / f"{TEXT}.safetensors"
    content = bytearray(file.read_bytes())
    content[8:12] = b"!!!!"
    file.write_bytes(content)
    assert refusal(folder).startswith(f"{file}: its header is not valid JSON; download")


def test_a_components_file_is_no_checkpoint(folder: Path) -> None:
    with pytest.raises(
        SourceError, match=r"is no pipeline in a layout that sdcompress knows .it holds fc.bias, fc.wei"
    ):
        open_source(str(folder / "unet" / f"{UNET}.safetensors"))


@pytest.mark.parametrize("name", ["sd16", "./missing/folder", "a/b/c"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(
        SourceError, match=r"give a diffusers folder, a .safetensors checkpoint, a hub id .* tiny-sd, flux-dev"
    ) as caught:
        open_source(name)
    assert str(caught.value).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("files", "variant", "chosen"),
    [
        (["model.safetensors", "model.fp16.safetensors", "model.bin"], None, ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], "fp16", ["model.fp16.safetensors"]),
        (["m-00001-of-00002.fp16.safetensors", "m-00002-of-00002.fp16.safetensors"], None, None),
        (["m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors"], "fp16", None),
        (["config.json"], None, []),
    ],
)
def test_choose_weight_files(files: list[str], variant: str | None, chosen: list[str] | None) -> None:
    assert choose_weight_files(files, variant, "here") == (files if chosen is None else chosen)


def test_is_weight_file() -> None:
    weights = (
        "model.safetensors", "pytorch_model.bin", "model.onnx_data", "model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    )  # fmt: skip
    assert all(map(is_weight_file, weights))
    assert not any(map(is_weight_file, ("config.json", "tokenizer.json", "merges.txt", "spiece.model", "index.json")))


def test_sources_are_plain_data(folder: Path) -> None:
    config: Mapping[str, Any] = open_folder(folder).components["unet"].config
    assert json.loads(json.dumps(dict(config))) == config
