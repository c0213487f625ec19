"""Pipelines from folders: good ones in every layout, and bad ones, whose errors say where and what to do."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import DTYPE_BYTES, StreamWriter
from sdcompress.sources.opening import open_folder, open_source
from sdcompress.sources.tensor_names import canonical_name
from sdcompress.sources.weight_files import choose_weight_files, is_weight_file

UNET, TEXT = "diffusion_pytorch_model", "model"


def write_weights(file: Path, dtype: str = "F16", **tensors: tuple[int, ...]) -> None:
    named = {name.replace("__", "."): shape for name, shape in tensors.items()}
    with StreamWriter(file, {name: (dtype, shape) for name, shape in named.items()}, {}) as writer:
        for name, shape in named.items():
            writer.write(name, bytes(math.prod(shape) * DTYPE_BYTES[dtype]))


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))


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
    file = folder / "text_encoder" / f"{TEXT}.safetensors"
    write_weights(file, "I64", embeddings__position_ids=(1, 77), fc__weight=(2, 2))
    text = open_folder(folder).components["text_encoder"]
    assert (text.parameters, text.weights_bytes) == (4, 8 * 81)


def test_old_names_of_a_vaes_attention_are_read_as_those_of_today() -> None:
    prefix = "decoder.mid_block.attentions.0"
    for old, new in (("query", "to_q"), ("proj_attn", "to_out.0"), ("group_norm", "group_norm")):
        assert canonical_name("AutoencoderKL", f"{prefix}.{old}.weight") == f"{prefix}.{new}.weight"


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
    assert "lists c.weight, which no shard holds" in refusal(folder)
    (folder / "unet" / shards[1]).unlink()
    assert "1 of 2 shards are there; download the rest" in refusal(folder)
    (folder / "unet" / shards[0]).unlink()
    assert "has a weights index but no safetensors shard; download" in refusal(folder)


def test_variants(folder: Path) -> None:
    write_weights(folder / "unet" / f"{UNET}.fp16.safetensors", x=(3,))
    write_weights(folder / "unet" / f"{UNET}.non_ema.safetensors", y=(5,))
    plain, fp16 = open_folder(folder), open_folder(folder, variant="fp16")
    assert (plain.components["unet"].parameters, fp16.components["unet"].parameters) == (40, 3)
    assert fp16.components["text_encoder"].parameters == 40  # has no variants
    assert "variant" not in plain.options and fp16.options["variant"] == "fp16"
    assert "no variant 'int4' among its safetensors ('', 'fp16', 'non_ema')" in refusal(folder, variant="int4")

    (folder / "unet" / f"{UNET}.safetensors").unlink()
    assert refusal(folder) == f"{folder / 'unet'}: several variants (fp16, non_ema); choose one with --variant"
    (folder / "unet" / f"{UNET}.non_ema.safetensors").unlink()
    lone = open_folder(folder)
    assert (lone.components["unet"].parameters, lone.options["variant"]) == (3, "fp16")


def damage_header(unet: Path) -> None:
    file = unet / f"{UNET}.safetensors"
    content = bytearray(file.read_bytes())
    content[8:12] = b"!!!!"
    file.write_bytes(content)


def truncate(unet: Path) -> None:
    file = unet / f"{UNET}.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("change", "where", "says"),
    [
        (shutil.rmtree, "unet", "missing, though model_index.json lists unet (UNet2DConditionModel)"),
        (lambda unet: (unet / f"{UNET}.safetensors").unlink(), "unet", "has a config.json but no weights; download"),
        (lambda unet: (unet / "config.json").unlink(), "unet", "has weights but no config.json; download"),
        (lambda unet: write_weights(unet / "other.safetensors", x=(3,)), "unet", "several safetensors files"),
        (
            lambda unet: (unet / f"{UNET}.safetensors").rename(unet / f"{UNET}.bin"),
            "unet",
            f"has only pickled weights ({UNET}.bin)",
        ),
        (truncate, f"unet/{UNET}.safetensors", "truncated; download or save the file again"),
        (damage_header, f"unet/{UNET}.safetensors", "its header is not valid JSON; download"),
        (lambda unet: (unet / "config.json").write_text("{"), "unet/config.json", "is not valid JSON"),
        (
            lambda unet: (unet.parent / "model_index.json").write_text("\0"),
            "model_index.json",
            "is not valid JSON",
        ),
        (lambda unet: (unet.parent / "sdcompress.json").write_text("[]"), "sdcompress.json", "is not a JSON object"),
        (
            lambda unet: write_json(unet.parent / "sdcompress.json", {"components": ["unet"]}),
            "sdcompress.json",
            "its components are malformed",
        ),
        (lambda unet: (unet.parent / "model_index.json").unlink(), "", "is no pipeline (it has no model_index.json)"),
        (
            lambda unet: write_json(unet.parent / "model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]}),
            "",
            "no component has safetensors weights",
        ),
    ],
)
def test_damaged_folders(folder: Path, change: Callable[[Path], object], where: str, says: str) -> None:
    change(folder / "unet")
    message = refusal(folder)
    assert message.startswith(f"{folder / where if where else folder}: ")
    assert says in message


def test_pickles_beside_safetensors_do_not_matter(folder: Path) -> None:
    (folder / "unet" / f"{UNET}.bin").write_bytes(b"pickle")
    source = open_folder(folder)
    assert source.components["unet"].parameters == 40
    assert not any(file.suffix == ".bin" for file in source.other_files)


def test_a_components_file_is_no_checkpoint(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"is no pipeline in a layout that sdcompress knows .it holds fc.bias"):
        open_source(str(folder / "unet" / f"{UNET}.safetensors"))


@pytest.mark.parametrize("name", ["sd16", "./missing/folder", "a/b/c"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(SourceError, match=r"give a diffusers folder, .* a hub id .* tiny-sd, flux-dev") as caught:
        open_source(name)
    assert str(caught.value).startswith(f"{name}: ")


def test_a_file_on_the_hub_is_to_be_downloaded() -> None:
    with pytest.raises(SourceError, match=r"download it \(`hf download org/name model.safetensors --local-dir \.`\)"):
        open_source("org/name/model.safetensors")


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
