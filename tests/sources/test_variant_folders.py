"""Sharded and variant folders as diffusers writes them, through plan, compress and opening."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdcompress import compress
from sdcompress.backends.open_pipeline import open_pipeline
from sdcompress.sources.opening import open_folder, open_source


def save_parts(nano_folder: Path, out: Path, parts: dict[str, dict[str, Any]]) -> Path:
    """The pipeline saved by its libraries, each part with settings of its own."""
    pipeline = open_pipeline(nano_folder)
    pipeline.save_pretrained(out)
    for name, settings in parts.items():
        for file in (out / name).glob("*.safetensors*"):
            file.unlink()
        part = getattr(pipeline, name)
        if settings.pop("half", False):
            part = part.half()
        part.save_pretrained(out / name, **settings)
    return out


@pytest.mark.parametrize(
    "parts",
    [
        {"unet": {"max_shard_size": "1MB"}, "text_encoder": {"max_shard_size": "20KB"}},
        {"unet": {"variant": "fp16", "max_shard_size": "1MB"},
         "text_encoder": {"variant": "fp16", "max_shard_size": "20KB"},
         "vae": {"variant": "fp16"}},
        {"unet": {"variant": "fp16", "half": True}, "vae": {}},
    ],
    ids=["shards", "shards of a variant", "some parts have the variant"],
)  # fmt: skip
def test_they_give_what_the_plain_folder_gives(
    parts: dict[str, dict[str, Any]], nano_folder: Path, tmp_path: Path
) -> None:
    variant = next((settings["variant"] for settings in parts.values() if "variant" in settings), None)
    half = any(settings.get("half") for settings in parts.values())
    folder = save_parts(nano_folder, tmp_path / "parts", parts)
    if not half:
        assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    source = open_source(str(folder), variant)
    assert source.parameters == open_folder(nano_folder).parameters
    compress(source, "int8", tmp_path / "out")
    plain = open_folder(nano_folder)
    compress(plain, "int8", tmp_path / "plain")
    for file in (tmp_path / "plain").rglob("*.safetensors"):
        ours, theirs = load_file(tmp_path / "out" / file.relative_to(tmp_path / "plain")), load_file(file)
        assert ours.keys() == theirs.keys()
        same = [torch.equal(ours[name], theirs[name]) for name in theirs]
        assert all(same) or (half and "unet" in str(file))  # rounded to half first, codes may differ
    assert not [file for file in (tmp_path / "out").rglob("*") if "index" in file.name and "safetensors" in file.name]
    assert open_folder(tmp_path / "out").options.get("variant") is None

    # Opened as evaluate and generate open it; without being told, the lone variant is found.
    for found in (source, open_source(str(folder))):
        assert found.options.get("variant") == variant
        pipeline = open_pipeline(folder, variant=found.options.get("variant"))
        weight = pipeline.unet.conv_in.weight
        wanted = load_file(nano_folder / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
        assert torch.equal(weight, wanted.half().float() if half else wanted)


def test_a_variant_beside_the_plain_weights_is_opened_when_it_is_asked_for(nano_copy: Path) -> None:
    pipeline = open_pipeline(nano_copy)
    pipeline.unet.half().save_pretrained(nano_copy / "unet", variant="fp16")
    for variant, is_half in ((None, False), ("fp16", True)):
        dtypes = {
            tensor.dtype for tensor in open_folder(nano_copy, variant=variant).components["unet"].tensors.values()
        }
        assert dtypes == {"F16" if is_half else "F32"}
        opened = open_pipeline(nano_copy, variant=variant).unet.conv_in.weight
        assert torch.equal(opened, opened.half().float()) is is_half
