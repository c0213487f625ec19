"""Random pipelines of the benchmarks: reproducible, of plausible scale, and opened by the stock classes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import random_pipeline as builder
from sdcompress.sources import catalog
from sdcompress.sources.opening import open_folder
from sdcompress.sources.spec import ComponentSpec, parameter

TINY_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4,
    "layers_per_block": 1, "block_out_channels": [32, 64], "norm_num_groups": 8, "cross_attention_dim": 16,
    "attention_head_dim": 8, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_unet() -> ComponentSpec:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_config(TINY_UNET)
    tensors = {name: parameter(tuple(tensor.shape), "F16") for name, tensor in model.state_dict().items()}
    return ComponentSpec("unet", "diffusers", "UNet2DConditionModel", TINY_UNET, tensors)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_stock_class_loads_and_runs_it(tiny_unet: ComponentSpec, tmp_path: Path, dtype: str) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    builder.write_random_component(tiny_unet, tmp_path, dtype, seed=0)
    model = UNet2DConditionModel.from_pretrained(tmp_path, torch_dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    with torch.no_grad():
        noise = model(sample, 10, torch.randn(2, 7, 16, generator=generator)).sample
    assert torch.isfinite(noise).all()
    assert 0.01 < noise.std().item() < 100  # neither dead nor exploding
    assert (model.conv_norm_out.weight == 1).all()
    assert (model.conv_in.bias == 0).all()


def test_same_seed_same_bytes(tiny_unet: ComponentSpec, tmp_path: Path) -> None:
    files = [
        builder.write_random_component(tiny_unet, tmp_path / f"{i}", "float16", seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert digest(files[0]) == digest(files[1]) != digest(files[2])


def test_part_of_a_pipeline(tmp_path: Path) -> None:
    folder = builder.build_random_pipeline("sd15", tmp_path / "sd15", components=["vae"])
    source = open_folder(folder)
    wanted = catalog.open_entry(catalog.load_entry("sd15"), "sd15").components["vae"]
    assert list(source.components) == ["vae"]
    assert source.components["vae"] == wanted
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == [None, None]
    assert (folder / "scheduler" / "scheduler_config.json").is_file()
    assert (folder / "feature_extractor" / "preprocessor_config.json").is_file()


@pytest.mark.parametrize(
    ("entry", "part"), [("sd15", "tokenizer"), ("sdxl", "tokenizer_2"), ("flux-dev", "tokenizer_2")]
)
def test_tokenizers_load_and_pad(tmp_path: Path, entry: str, part: str) -> None:
    import transformers

    facts = catalog.load_entry(entry).tokenizers[part]
    builder.write_tokenizer(tmp_path, facts)
    tokenizer = getattr(transformers, facts["tokenizer_class"]).from_pretrained(tmp_path)
    ids = tokenizer("a red cat", padding="max_length", max_length=20, truncation=True).input_ids
    assert (len(ids), tokenizer.model_max_length) == (20, facts["model_max_length"])
    assert tokenizer.decode(ids, skip_special_tokens=True).strip("! ") == "a red cat"
    assert ids[-1] == tokenizer.convert_tokens_to_ids(facts["pad_token"])
    if facts["tokenizer_class"] == "CLIPTokenizer":
        assert max(ids) == tokenizer.eos_token_id  # the text model pools at the highest id
