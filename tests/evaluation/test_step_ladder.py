"""The ladder of steps: what each rung is, how it is made, and what an evaluation says of it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from in_process import InProcess
from rich.console import Console

from sdcompress.calibration.prompts import PromptSet
from sdcompress.errors import EvaluationError
from sdcompress.evaluation import step_ladder
from sdcompress.evaluation.attribution import RUNGS_FOLDER
from sdcompress.evaluation.evaluate import evaluate
from sdcompress.evaluation.settings import EvaluationSettings
from sdcompress.evaluation.step_ladder import Rung, list_ladder, make_rung
from sdcompress.execution.execute import execute
from sdcompress.files.manifest import MANIFEST_NAME
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.report import render
from sdcompress.sources.opening import open_source

CALIBRATION = "calibration: {prompts: [ab], num_inference_steps: 2}\n"
RECIPE = f"""
schema_version: 1
description: Three steps, two and one.
components:
  unet:
    - prune: {{drop_mid_block: true}}
    - cast: {{dtype: bfloat16}}
    - quantize: {{format: int3, group_size: null}}
  text_encoder:
    - cast: {{dtype: float32}}
    - smooth: {{format: uint4, group_size: 16}}
    - quantize: {{format: uint4, group_size: 16, rounding: gptq}}
  vae:
    - cast: {{dtype: bfloat16}}
{CALIBRATION}"""
LABELS = {"unet": "swap-unet", "text_encoder": "swap-text_encoder", "vae": "swap-vae"}
SETTINGS = EvaluationSettings(
    prompts=PromptSet("letters", ("ab", "cd", "ef"), 3),
    num_inference_steps=2,
    threads=1,
    use_clip=False,
    noise_floor=("bfloat16",),
    noise_floor_count=3,
    component_metrics=False,
    attribute=True,
    attribute_count=3,
)


def _no_calibration(*_: object) -> None:
    raise AssertionError("pictures were drawn for calibration, which the cache has")


@pytest.fixture(scope="module")
def artifact(nano_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "artifact"
    execute(make_plan(parse_recipe(RECIPE, "test"), open_source(str(nano_folder))), out)
    return out


@pytest.fixture(scope="module")
def ladder(nano_folder: Path, artifact: Path) -> dict[str, tuple[Rung, ...]]:
    return list_ladder(open_source(str(nano_folder)), open_source(str(artifact)), LABELS)


def _with_steps(artifact: Path, folder: Path, component: str, steps: list[Any], **recipe: Any) -> Path:
    """A copy of the artifact whose manifest says that the component was made by other steps."""
    shutil.copytree(artifact, folder)
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["components"][component]["steps"] = steps
    manifest["recipe"] |= recipe
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return folder


def test_rungs_are_the_steps_that_change_weights(
    ladder: dict[str, tuple[Rung, ...]], nano_folder: Path, artifact: Path
) -> None:
    steps = {name: [rung.step for rung in rungs] for name, rungs in ladder.items()}
    # The cast of the text encoder, which is in float32 already, leaves it as it is.
    assert steps == {"unet": ["prune", "cast", "quantize"], "text_encoder": ["smooth", "quantize"], "vae": ["cast"]}
    assert [rung.place for rung in ladder["text_encoder"]] == [2, 3]
    assert [rung.variant for rung in ladder["unet"]] == ["step-unet-1", "step-unet-2", "swap-unet"]
    original, compressed = open_source(str(nano_folder)), open_source(str(artifact))
    for name, rungs in ladder.items():
        before, after = original.components[name].weights_bytes, compressed.components[name].weights_bytes
        assert sum(rung.saved_bytes for rung in rungs) == before - after and rungs[-1].weights_bytes == after
        assert [rung.plan is None for rung in rungs] == [False] * (len(rungs) - 1) + [True]


@pytest.mark.parametrize(
    ("component", "steps"),
    [("unet", "prune: {drop_mid_block: true}"), ("unet", "prune: {drop_mid_block: true}|cast: {dtype: bfloat16}"),
     ("text_encoder", "cast: {dtype: float32}|smooth: {format: uint4, group_size: 16}")],
)  # fmt: skip
def test_a_rung_is_what_the_shortened_recipe_makes(
    component: str, steps: str, ladder: dict[str, tuple[Rung, ...]], nano_folder: Path, tmp_path: Path
) -> None:
    shortened = "".join(f"    - {step}\n" for step in steps.split("|"))
    text = f"schema_version: 1\ndescription: d\ncomponents:\n  {component}:\n{shortened}{CALIBRATION}"
    execute(make_plan(parse_recipe(text, "test"), open_source(str(nano_folder))), tmp_path / "whole")
    (rung,) = [each for each in ladder[component] if each.place == len(steps.split("|"))]
    make_rung(rung, tmp_path / "rung", _no_calibration)
    files = sorted(file.name for file in (tmp_path / "rung").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "whole" / component).iterdir())
    for name in files:
        assert (tmp_path / "rung" / name).read_bytes() == (tmp_path / "whole" / component / name).read_bytes(), name
    (weights,) = [name for name in files if name.endswith(".safetensors")]
    header = 8 + int.from_bytes((tmp_path / "rung" / weights).read_bytes()[:8], "little")
    assert (tmp_path / "rung" / weights).stat().st_size - header == rung.weights_bytes
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_is_trained_again(nano_folder: Path, artifact: Path, tmp_path: Path) -> None:
    manifest = json.loads((artifact / MANIFEST_NAME).read_text())
    prune, cast, quantize = manifest["components"]["unet"]["steps"]
    copy = _with_steps(artifact, tmp_path / "copy", "unet", [prune, {"recover": {"steps": 3}}, cast, quantize])
    rungs = list_ladder(open_source(str(nano_folder)), open_source(str(copy)), LABELS)
    assert [(rung.step, rung.plan is None) for rung in rungs["unet"]] == [
        ("prune", False), ("recover", True), ("cast", True), ("quantize", True),
    ]  # fmt: skip
    reasons = [rung.not_measured for rung in rungs["unet"]]
    assert reasons[0] is None is reasons[3] and "trained again" in reasons[1] and reasons[1] == reasons[2]
    # Smoothing is calibrated on what the recovered UNet's pipeline draws.
    assert "trained again" in (rungs["text_encoder"][0].not_measured or "") and rungs["vae"][0].not_measured is None


def test_no_ladder_where_the_steps_are_not_those_of_this_original(
    nano_folder: Path, artifact: Path, tmp_path: Path
) -> None:
    original, compressed = open_source(str(nano_folder)), open_source(str(artifact))
    with pytest.raises(EvaluationError, match="no artifact of sdcompress"):
        list_ladder(original, original, LABELS)
    with pytest.raises(EvaluationError, match=r"made of .*nano, whose text_encoder is not this original's"):
        list_ladder(open_source("tiny-sd"), compressed, LABELS)
    unknown = _with_steps(artifact, tmp_path / "unknown", "unet", [{"shrink": {}}])
    with pytest.raises(EvaluationError, match=r"cannot be planned on this original: .*no step 'shrink'"):
        list_ladder(original, open_source(str(unknown)), LABELS)


def test_an_evaluation_climbs_the_ladder(
    in_process: type[InProcess],
    nano_folder: Path,
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    write = step_ladder.write_safetensors
    monkeypatch.setattr(
        step_ladder, "write_safetensors", lambda part, to: (made.append(part.spec.name), write(part, to))
    )
    # Killed in the first rung: after both pipelines' 6 pictures, the floor's 3, and 2 x 3 of the text encoder's swap.
    in_process.left = 6 + 3 + 6 + 3
    with pytest.raises(EvaluationError, match="killed"):
        evaluate(str(nano_folder), str(artifact), tmp_path, settings=SETTINGS)
    assert len(list((tmp_path / RUNGS_FOLDER).iterdir())) == 1
    in_process.left = 10_000
    report = evaluate(str(nano_folder), str(artifact), tmp_path, settings=SETTINGS)
    assert sorted(made) == ["text_encoder", "unet", "unet"]  # the one that lay there was not made again
    assert list((tmp_path / RUNGS_FOLDER).iterdir()) == []  # as large as the component, and drawn

    entries = {entry["name"]: entry for entry in report["attribution"]}
    prune, cast, quantize = entries["unet"]["ladder"]
    assert [rung["step"] for rung in (prune, cast, quantize)] == ["prune", "cast", "quantize"]
    assert all(rung["pictures"] == 3 and rung["latency_s"]["ratio"] > 0 for rung in (prune, cast, quantize))
    # 3 bits on a random UNet move its pictures by far more than rounding to bfloat16 does.
    assert quantize["psnr_db"]["mean"] < cast["psnr_db"]["mean"] - 3 and quantize["verdict"] == "worse"
    assert prune["adds"]["psnr_db"]["difference"] is None  # before the first step the pictures are the original's
    gained = [rung["adds"]["psnr_db"]["difference"] for rung in (cast, quantize)]
    assert sum(gained) == pytest.approx(quantize["psnr_db"]["mean"] - prune["psnr_db"]["mean"], abs=1e-9)
    assert all(quantize[name] == entries["unet"][name] for name in ("psnr_db", "ssim", "verdict", "saved_bytes")[:3])
    assert entries["vae"]["ladder"][0]["step"] == "cast"

    console = Console(width=80, file=io.StringIO())
    render(report, console)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80 and "…" not in text
    assert all(words in text for words in ("after step", "+ prune", "+ quantize", "+ smooth"))
    assert "### Step by step" in (tmp_path / "report.md").read_text()
    assert "unet + quantize" in (tmp_path / "report.html").read_text()
