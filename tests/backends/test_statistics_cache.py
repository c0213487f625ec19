"""Statistics in the cache: found again, missed when anything they depend on changes, resumed, and never damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from listeners import Events

from sdcompress.backends.torch import gathering
from sdcompress.backends.torch.input_statistics import StatisticsFile, content_key, load_or_gather
from sdcompress.calibration.settings import Calibration
from sdcompress.errors import SourceError
from sdcompress.progress import Listener, silent
from sdcompress.quant.statistics import Limits
from sdcompress.sources.opening import open_folder
from sdcompress.sources.source import Source

CALIBRATION = Calibration(prompts=("a red apple", "two cats"), num_inference_steps=2)
WANTED = {
    "text_encoder": ["text_model.encoder.layers.0.mlp.fc1"],
    "unet": ["mid_block.resnets.0.conv1", "conv_in"],
    "vae": ["decoder.conv_in"],
}
LIMITS = Limits(rows=64, columns=100)
PROMPTS = 2
RUNS = {"text_encoder": PROMPTS, "unet": PROMPTS * 2, "vae": PROMPTS}


def stop_at(component: str, run: int) -> Events:
    return Events("calibrating", lambda event: event.subject == component and event.done == run)


def load(source: Source, cache: Path, listener: Listener = silent, **changes: Any) -> dict[str, StatisticsFile]:
    arguments: dict[str, Any] = {"wanted": WANTED, "calibration": CALIBRATION, "limits": LIMITS, **changes}
    return load_or_gather(source, listener=listener, cache=cache, device="cpu", **arguments)


def files_in(cache: Path) -> dict[str, bytes]:
    """Name -> content of all files, the keys' folders left out of the names."""
    return {file.name: file.read_bytes() for file in sorted(cache.rglob("*")) if file.is_file()}


def equal(one: Any, other: Any) -> bool:
    return all(
        one[name].count == other[name].count
        and torch.equal(one[name].mean, other[name].mean)
        and len(one[name].moments) == len(other[name].moments)
        and all(torch.equal(a, b) for a, b in zip(one[name].moments, other[name].moments, strict=True))
        for name in one
    )


@pytest.fixture(scope="module")
def nano(nano_folder: Path) -> Source:
    return open_folder(nano_folder)


@pytest.fixture(scope="module")
def whole(nano: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache after a run that nothing interrupted."""
    cache = tmp_path_factory.mktemp("whole")
    load(nano, cache)
    return cache


def test_what_is_there_is_not_gathered_again(nano: Source, whole: Path) -> None:
    events = Events()
    found = load(nano, whole, events)
    assert not events  # no picture is drawn for what is there
    assert list(found) == list(WANTED)
    for component, layers in WANTED.items():
        assert sorted(found[component]) == sorted(layers) and len(found[component]) == len(layers)
    assert len(found["unet"]["mid_block.resnets.0.conv1"].moments) == 6  # 64 channels, 11 in a block
    assert "conv_out" not in found["unet"]
    with pytest.raises(KeyError):
        found["unet"]["conv_out"]


def test_files_are_named_by_key_and_component(nano: Source, whole: Path) -> None:
    key = content_key(
        nano, {name: tuple(sorted(layers)) for name, layers in WANTED.items()}, CALIBRATION, LIMITS, "cpu"
    )
    assert len(key) == 64
    names = sorted(file.relative_to(whole).as_posix() for file in whole.rglob("*") if file.is_file())
    assert names == [f"statistics/{key}/{component}.safetensors" for component in WANTED]


def test_same_bytes_wherever_it_is_gathered(nano: Source, whole: Path, tmp_path: Path) -> None:
    events = Events()
    load(nano, tmp_path, events, wanted={name: layers[::-1] for name, layers in WANTED.items()})
    assert events.counts == RUNS
    assert files_in(tmp_path) == files_in(whole)


def test_the_cache_is_where_the_variable_says(nano: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCOMPRESS_CACHE", str(tmp_path / "here"))
    wanted = {"text_encoder": WANTED["text_encoder"]}
    load_or_gather(nano, wanted, CALIBRATION, device="cpu")
    assert [file.name for file in (tmp_path / "here" / "statistics").rglob("*.safetensors")] == [
        "text_encoder.safetensors"
    ]


@pytest.mark.parametrize("stop", [("text_encoder", 2), ("unet", 4), ("vae", 2)])
def test_a_killed_run_goes_on_to_the_same_statistics(
    stop: tuple[str, int], nano: Source, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last finished prompt of the component it was in, when progress is saved after every one."""
    monkeypatch.setattr(gathering, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(gathering, "_CHECKPOINT_SHARE", 0)
    with pytest.raises(KeyboardInterrupt):
        load(nano, tmp_path, stop_at(*stop))
    events = Events()
    load(nano, tmp_path, events)
    component, tick = stop
    per_prompt = RUNS[component] // PROMPTS
    left = RUNS[component] - (tick - 1) // per_prompt * per_prompt  # a prompt is finished after its last run
    later = list(RUNS)[list(RUNS).index(component) + 1 :]
    assert events.counts == {component: left, **{name: RUNS[name] for name in later}}
    assert events[-1].done == events[-1].total
    assert files_in(tmp_path) == files_in(whole)  # and nothing of the progress is left


def test_without_time_for_checkpoints_components_are_saved(nano: Source, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(nano, tmp_path, stop_at("unet", 3))
    events = Events()
    load(nano, tmp_path, events)
    assert events.counts == {"unet": RUNS["unet"], "vae": RUNS["vae"]}
    assert files_in(tmp_path) == files_in(whole)


@pytest.mark.parametrize("damage", ["flipped", "cut", "no header", "gone"])
def test_a_damaged_file_is_gathered_anew(damage: str, nano: Source, whole: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(whole, tmp_path / "cache"))
    (file,) = cache.rglob("text_encoder.safetensors")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"flipped": data, "cut": data[: len(data) // 2], "no header": b"x"}[damage])
    events = Events()
    load(nano, cache, events)
    assert events.counts == {"text_encoder": PROMPTS}
    assert files_in(cache) == files_in(whole)


def test_what_leads_to_a_damaged_file_runs_again(nano: Source, whole: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(whole, tmp_path / "cache"))
    (file,) = cache.rglob("unet.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    events = Events()
    load(nano, cache, events)
    assert events.counts == {name: RUNS[name] for name in ("text_encoder", "unet")}
    assert files_in(cache) == files_in(whole)


def test_damaged_progress_is_not_used(nano: Source, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(nano, tmp_path, stop_at("unet", 3))
    (file,) = tmp_path.rglob("progress/text_encoder.safetensors")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    events = Events()
    load(nano, tmp_path, events)
    assert events.counts == RUNS
    assert files_in(tmp_path) == files_in(whole)


def key_of(source: Source, **changes: Any) -> str:
    arguments: dict[str, Any] = {"wanted": WANTED, "calibration": CALIBRATION, "limits": LIMITS, "device": "cpu"}
    return content_key(source, **{**arguments, **changes})


@pytest.mark.parametrize(
    "setting",
    [
        {"seed": 1}, {"num_inference_steps": 3}, {"guidance_scale": 3.0}, {"height": 32}, {"width": 8},
        {"prompts": ("a red apple", "two dogs")},
    ],
)  # fmt: skip
def test_another_setting_is_another_key(setting: dict[str, Any], nano: Source) -> None:
    assert key_of(nano, calibration=CALIBRATION.model_copy(update=setting)) != key_of(nano)


def test_what_does_not_matter_is_not_in_the_key(nano: Source, nano_copy: Path) -> None:
    assert key_of(nano, calibration=CALIBRATION.model_copy(update={"range": "minmax"})) == key_of(nano)
    assert key_of(open_folder(nano_copy)) == key_of(nano)


def test_other_layers_limits_or_devices_are_another_key(nano: Source) -> None:
    changes: list[dict[str, Any]] = [
        {"wanted": {**WANTED, "unet": ["conv_in"]}},
        {"wanted": {"unet": WANTED["unet"]}},
        {"limits": Limits(rows=65, columns=100)},
        {"limits": Limits(rows=64, columns=99)},
        {"device": "cuda"},
    ]
    assert len({key_of(nano), *(key_of(nano, **change) for change in changes)}) == 1 + len(changes)


def test_other_prompts_or_settings_are_gathered(nano: Source, tmp_path: Path) -> None:
    wanted = {"text_encoder": WANTED["text_encoder"]}
    one = load(nano, tmp_path, wanted=wanted)
    events = Events()
    prompts = CALIBRATION.model_copy(update={"prompts": ("a red apple", "two dogs")})
    other = load(nano, tmp_path, events, wanted=wanted, calibration=prompts)
    assert events.counts == {"text_encoder": PROMPTS}
    assert not equal(one["text_encoder"], other["text_encoder"])


@pytest.mark.parametrize("part", ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"])
def test_another_weight_byte_is_another_key(part: str, nano: Source, nano_copy: Path) -> None:
    file = nano_copy / f"{part}.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert key_of(open_folder(nano_copy)) != key_of(nano)
    before = {"text_encoder": WANTED["text_encoder"]}  # nothing after it runs, so nothing after it matters
    same = key_of(open_folder(nano_copy), wanted=before) == key_of(nano, wanted=before)
    assert same == (not part.startswith("text_encoder"))


@pytest.mark.parametrize("file", ["scheduler/scheduler_config.json", "tokenizer/vocab.json", "unet/config.json"])
def test_another_scheduler_tokenizer_or_config_is_another_key(file: str, nano: Source, nano_copy: Path) -> None:
    content = json.loads((nano_copy / file).read_text())
    (nano_copy / file).write_text(json.dumps({**content, "_another": 1}))
    assert key_of(open_folder(nano_copy)) != key_of(nano)


def test_nothing_wanted_draws_nothing(nano: Source, tmp_path: Path) -> None:
    assert load(nano, tmp_path, wanted={"unet": []}) == {} and not list(tmp_path.iterdir())


def test_broken_weights_name_the_layer(nano_copy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = nano_copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"][0] = torch.inf
    save_file(tensors, file)
    with pytest.raises(SourceError, match=r"^unet\.conv_out: in its input"):
        load(open_folder(nano_copy), tmp_path / "cache", wanted={"unet": ["conv_out"]})
    assert not list((tmp_path / "cache").rglob("unet.safetensors"))
