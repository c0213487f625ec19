"""Checkpoints of full size by their headers alone: the data was never written, so that they take no space."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from original_layout import State, clip_to_open_clip, sd1_checkpoint, unet_to_original, vae_to_original
from safetensors.torch import save_file

from sdcompress.errors import SourceError
from sdcompress.execution.execute import execute
from sdcompress.files.safetensors_file import read_bytes
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import load_recipe
from sdcompress.sources import catalog
from sdcompress.sources.opening import open_folder, open_source
from sdcompress.sources.single_file import tokenizers
from sdcompress.sources.single_file.transformer_names import locate_in_flux, locate_in_sd3
from sdcompress.sources.source import Source
from sdcompress.sources.spec import ComponentSpec

ROOT = Path(__file__).resolve().parents[2]
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def components_of(entry: str) -> dict[str, ComponentSpec]:
    return dict(catalog.open_entry(catalog.load_entry(entry), entry).components)


def shapes_of(entry: str, component: str) -> State:
    tensors = components_of(entry)[component].tensors
    return {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}


def with_prefix(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def write_header(file: Path, state: State) -> str:
    """Write a safetensors file of these shapes in float16 whose data is a hole, and return its path."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in state.items():
        begin, end = end, end + tensor.numel() * 2
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)
    return str(file)


def unet_checkpoint(entry: str) -> State:
    """The catalog's pipeline with a UNet in its original layout, as shapes."""
    unet = unet_to_original(shapes_of(entry, "unet"), levels=3 if entry == "sdxl" else 4)
    state = {
        **with_prefix("model.diffusion_model.", unet),
        **with_prefix("first_stage_model.", vae_to_original(shapes_of(entry, "vae"))),
        "alphas_cumprod": torch.empty(1000, device="meta"),
        "model_ema.decay": torch.empty(1, device="meta"),
    }
    for prefix, component, convert in {
        "sd15": [("cond_stage_model.transformer.", "text_encoder", dict)],
        "sd21": [("cond_stage_model.model.", "text_encoder", clip_to_open_clip)],
        "sdxl": [
            ("conditioner.embedders.0.transformer.", "text_encoder", dict),
            ("conditioner.embedders.1.model.", "text_encoder_2", clip_to_open_clip),
        ],
        "sdxl-refiner": [("conditioner.embedders.0.model.", "text_encoder_2", clip_to_open_clip)],
    }[entry]:
        state |= with_prefix(prefix, convert(shapes_of(entry, component)))
    return state


def transformer_checkpoint(entry: str, locate: Any) -> State:
    """The catalog's transformer in its original layout, as shapes: rows of the same tensor there are joined."""
    spec = components_of(entry)["transformer"]
    rows: dict[str, int] = {}
    rest: dict[str, tuple[int, ...]] = {}
    for name, tensor in spec.tensors.items():
        where = locate(name, spec.config).name
        rows[where] = rows.get(where, 0) + tensor.shape[0]
        rest[where] = tensor.shape[1:]
    return {name: torch.empty((count, *rest[name]), device="meta") for name, count in rows.items()}


@pytest.mark.parametrize("entry", ["sd15", "sd21", "sdxl", "sdxl-refiner"])
def test_a_checkpoint_is_recognised_with_the_catalogs_configs(entry: str, tmp_path: Path) -> None:
    file = write_header(tmp_path / "model.safetensors", unet_checkpoint(entry))
    started = time.perf_counter()
    source = open_source(file)
    plan = make_plan(load_recipe("int8"), source)
    assert time.perf_counter() - started < 2
    components = {name: spec for name, spec in components_of(entry).items() if name != "safety_checker"}
    assert source.components == components
    assert plan.source.parameters == sum(spec.parameters for spec in components.values())
    assert source.path is None  # no vocabulary here
    assert not any("belong to none" in note for note in source.notes)
    assert "fetches them from the hub" in source.notes[-1]
    with pytest.raises(SourceError, match="name a pipeline's folder that has them with --like"):
        execute(plan, tmp_path / "out")


@pytest.mark.parametrize(
    ("entry", "locate"), [("flux-schnell", locate_in_flux), ("flux-dev", locate_in_flux), ("sd3-medium", locate_in_sd3)]
)
def test_every_tensor_of_a_transformer_has_a_slice_of_its_own(entry: str, locate: Any) -> None:
    spec = components_of(entry)["transformer"]
    slices = [locate(name, spec.config) for name in spec.tensors]
    assert None not in slices
    assert len(set(slices)) == len(slices)


def test_sd3_does_without_t5(tmp_path: Path) -> None:
    state = {
        **with_prefix("model.diffusion_model.", transformer_checkpoint("sd3-medium", locate_in_sd3)),
        **with_prefix("first_stage_model.", vae_to_original(shapes_of("sd3-medium", "vae"))),
        **with_prefix("text_encoders.clip_l.transformer.", shapes_of("sd3-medium", "text_encoder")),
        **with_prefix("text_encoders.clip_g.transformer.", shapes_of("sd3-medium", "text_encoder_2")),
    }
    source = open_source(write_header(tmp_path / "sd3.safetensors", state))
    wanted = components_of("sd3-medium")
    del wanted["text_encoder_3"]
    assert source.components == wanted
    absent = [name for name, value in source.model_index.items() if value == [None, None]]
    assert absent == ["text_encoder_3", "tokenizer_3"]
    assert "the file has no text_encoder_3: the pipeline does without" in source.notes


def test_a_transformer_alone_needs_a_folder_for_the_rest(tmp_path: Path) -> None:
    file = write_header(tmp_path / "flux1.safetensors", transformer_checkpoint("flux-schnell", locate_in_flux))
    with pytest.raises(SourceError, match=r"has no text_encoder and no text_encoder_2 and no vae; name a diffusers"):
        open_source(file)


@pytest.mark.full
def test_sd15_tensor_for_tensor(tmp_path: Path) -> None:
    """Takes 2.1 GB of disk for each of the folder and the file, and 2 GB of memory."""
    from benchmarks.random_pipeline import build_random_pipeline

    folder = build_random_pipeline("sd15", tmp_path / "sd15", components=["unet", "vae", "text_encoder"])
    save_file(sd1_checkpoint(folder, levels=4), tmp_path / "sd15.safetensors")
    source, wanted = open_source(str(tmp_path / "sd15.safetensors")), open_folder(folder)
    assert source.components == wanted.components
    for component in wanted.components:
        for name, where in wanted.tensors[component].items():
            assert read_bytes(source.tensors[component][name]) == read_bytes(where), f"{component}.{name}"


@pytest.mark.parametrize(
    ("entry", "channels", "pipeline_class"),
    [
        ("sd15", 9, "StableDiffusionInpaintPipeline"),
        ("sd15", 8, "StableDiffusionInstructPix2PixPipeline"),
        ("sdxl", 9, "StableDiffusionXLInpaintPipeline"),
        ("sdxl", 7, None),
    ],
)
def test_input_channels_settle_the_pipeline_class(
    entry: str, channels: int, pipeline_class: str | None, tmp_path: Path
) -> None:
    state = unet_checkpoint(entry) | {CONV_IN: torch.empty(320, channels, 3, 3, device="meta")}
    file = write_header(tmp_path / "model.safetensors", state)
    if pipeline_class is None:
        with pytest.raises(SourceError, match=r"its UNet takes 7 channels, .* with --like"):
            open_source(file)
        return
    source = open_source(file)
    unet = source.components["unet"]
    assert (source.pipeline_class, unet.config["in_channels"]) == (pipeline_class, channels)
    assert unet.tensors["conv_in.weight"].shape == (320, channels, 3, 3)


def scheduler_of(source: Source) -> dict[str, Any]:
    assert source.path is not None
    config: dict[str, Any] = json.loads((source.path / "scheduler" / "scheduler_config.json").read_text())
    return config


def test_prediction_types(tmp_path: Path, vocabulary: None) -> None:
    (tmp_path / "vocab.json").write_text("a")
    (tmp_path / "merges.txt").write_text("b")
    xl = unet_checkpoint("sdxl")
    source = open_source(write_header(tmp_path / "xl.safetensors", xl))
    assert scheduler_of(source)["prediction_type"] == "epsilon"
    xl |= {"v_pred": torch.empty(0, device="meta"), "ztsnr": torch.empty(0, device="meta")}
    velocity = scheduler_of(open_source(write_header(tmp_path / "v.safetensors", xl)))
    assert velocity["prediction_type"] == "v_prediction"
    assert (velocity["rescale_betas_zero_snr"], velocity["timestep_spacing"]) == (True, "trailing")

    file = write_header(tmp_path / "sd2.safetensors", unet_checkpoint("sd21"))
    unsaid, said = open_source(file), open_source(file, prediction="epsilon")
    assert [scheduler_of(each)["prediction_type"] for each in (unsaid, said)] == ["v_prediction", "epsilon"]
    assert any("give --prediction epsilon" in note for note in unsaid.notes)
    assert (unsaid.components["unet"].config["sample_size"], said.components["unet"].config["sample_size"]) == (96, 64)
    with pytest.raises(SourceError, match="--prediction noise: use one of epsilon, v_prediction"):
        open_source(file, prediction="noise")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["lora_unet_down_blocks_0.alpha"], "is a LoRA"),
        (["control_model.input_blocks.0.0.weight"], "is a ControlNet"),
        (["down_blocks.0.resnets.0.conv1.weight"], "is the UNet of a diffusers folder; give the folder"),
        (["a", "b"], "is no pipeline in a layout that sdcompress knows .it holds a, b"),
        ([CONV_IN], "has no model.diffusion_model"),
    ],
)
def test_other_files_are_refused_with_what_they_are(names: list[str], says: str, tmp_path: Path) -> None:
    state = {name: torch.empty(320, 4, 3, 3, device="meta") for name in names}
    with pytest.raises(SourceError, match=says):
        open_source(write_header(tmp_path / "other.safetensors", state))


# Vocabularies


@pytest.fixture
def vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """`a` and `b` are taken for CLIP's vocabulary."""
    wanted = {"vocab.json": hashlib.sha256(b"a").hexdigest(), "merges.txt": hashlib.sha256(b"b").hexdigest()}
    monkeypatch.setitem(tokenizers._VOCABULARIES, "CLIPTokenizer", wanted)


CLIP = {"tokenizer": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "!"}}


@pytest.mark.parametrize(
    "place", ["", "tokenizer", "hub/models--someone--pipeline/snapshots/0/tokenizer", "cache/checkpoints/x/tokenizer"]
)
def test_vocabularies_are_found_by_their_hashes(place: str, vocabulary: None, tmp_path: Path) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text("a")
    (folder / "merges.txt").write_text("another")
    assert tokenizers.find_tokenizers(CLIP, tmp_path, fetch=False) is None
    (folder / "merges.txt").write_text("b")
    found = tokenizers.find_tokenizers(CLIP, tmp_path, fetch=False)
    assert found is not None
    assert (found["tokenizer/vocab.json"], found["tokenizer/merges.txt"]) == (b"a", b"b")
    assert json.loads(found["tokenizer/tokenizer_config.json"])["pad_token"] == "!"


def test_vocabularies_are_fetched(vocabulary: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = {"vocab.json": b"a", "merges.txt": b"b"}
    monkeypatch.setattr(tokenizers, "fetch_file", lambda hub_id, name: served[name])
    found = tokenizers.find_tokenizers(CLIP, tmp_path, fetch=True)
    assert found is not None and found["tokenizer/vocab.json"] == b"a"
    served["vocab.json"] = b"c"
    with pytest.raises(SourceError, match="is not the published vocabulary"):
        tokenizers.find_tokenizers(CLIP, tmp_path, fetch=True)

    def refuse(hub_id: str, name: str) -> bytes:
        raise SourceError("no connection")

    monkeypatch.setattr(tokenizers, "fetch_file", refuse)
    with pytest.raises(SourceError, match=r"could not be fetched \(no connection\); put vocab.json and merges.txt of"):
        tokenizers.find_tokenizers(CLIP, tmp_path, fetch=True)


@pytest.mark.parametrize(
    ("model", "entry"),
    [("stable-diffusion-v1-5", "sd15"), ("stable-diffusion-2-1", "sd21"), ("stable-diffusion-xl-base-1.0", "sdxl")],
)
def test_published_vocabularies_give_the_published_tokens(model: str, entry: str, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    reference = ROOT.parent / "shared" / "reference" / "models" / model
    if not reference.is_dir():
        pytest.skip(f"{reference} is not here (published tokenizers, which are not committed)")
    configs = catalog.load_entry(entry).tokenizers
    found = tokenizers.find_tokenizers(configs, reference, fetch=False)
    assert found is not None
    for name, content in found.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    texts = ["a red cat, 4k", "Ünïcode 🐈", "word " * 100]
    for tokenizer in configs:
        ids = [
            CLIPTokenizer.from_pretrained(folder / tokenizer)(texts, padding="max_length", truncation=True).input_ids
            for folder in (tmp_path, reference)
        ]
        assert ids[0] == ids[1]
