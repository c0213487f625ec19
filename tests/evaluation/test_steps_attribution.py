"""Components after some of their steps: what each is, how it is made, and what an evaluation says of it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from in_process import InProcess, evaluate
from rich.console import Console

from sdcompress import compress
from sdcompress.calibration.prompts import PromptSet
from sdcompress.errors import EvaluationError
from sdcompress.evaluation import steps_attribution
from sdcompress.evaluation.attribution import STEPS_FOLDER
from sdcompress.evaluation.result import StepSwap
from sdcompress.evaluation.settings import EvaluationSettings
from sdcompress.evaluation.steps_attribution import PartialRecipe, make_component, plan_steps
from sdcompress.files.manifest import MANIFEST_NAME
from sdcompress.planning.recipe import parse_recipe
from sdcompress.report import Report, print_report
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
    compress(nano_folder, parse_recipe(RECIPE, "test"), out)
    return out


@pytest.fixture(scope="module")
def planned(nano_folder: Path, artifact: Path) -> tuple[dict[str, tuple[StepSwap, ...]], dict[str, PartialRecipe]]:
    return plan_steps(open_source(str(nano_folder)), open_source(str(artifact)), LABELS)


def _with_steps(artifact: Path, folder: Path, component: str, steps: list[Any], **recipe: Any) -> Path:
    """A copy of the artifact whose manifest says that the component was made by other steps."""
    shutil.copytree(artifact, folder)
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["components"][component]["steps"] = steps
    manifest["recipe"] |= recipe
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return folder


def test_steps_are_those_that_change_weights(planned: Any, nano_folder: Path, artifact: Path) -> None:
    swaps, recipes = planned
    steps = {name: [swap.step for swap in each] for name, each in swaps.items()}
    # The cast of the text encoder, which is in float32 already, leaves it as it is.
    assert steps == {"unet": ["prune", "cast", "quantize"], "text_encoder": ["smooth", "quantize"], "vae": ["cast"]}
    assert [swap.place for swap in swaps["text_encoder"]] == [2, 3]
    assert [swap.variant for swap in swaps["unet"]] == ["step-unet-1", "step-unet-2", "swap-unet"]
    assert set(recipes) == {"step-unet-1", "step-unet-2", "step-text_encoder-2"}
    original, compressed = open_source(str(nano_folder)), open_source(str(artifact))
    for name, each in swaps.items():
        before, after = original.components[name].weights_bytes, compressed.components[name].weights_bytes
        assert sum(swap.saved_bytes for swap in each) == before - after and each[-1].weights_bytes == after


@pytest.mark.parametrize(
    ("component", "steps"),
    [("unet", "prune: {drop_mid_block: true}"), ("unet", "prune: {drop_mid_block: true}|cast: {dtype: bfloat16}"),
     ("text_encoder", "cast: {dtype: float32}|smooth: {format: uint4, group_size: 16}")],
)  # fmt: skip
def test_a_component_after_some_steps_is_what_the_shortened_recipe_makes(
    component: str, steps: str, planned: Any, nano_folder: Path, tmp_path: Path
) -> None:
    shortened = "".join(f"    - {step}\n" for step in steps.split("|"))
    text = f"schema_version: 1\ndescription: d\ncomponents:\n  {component}:\n{shortened}{CALIBRATION}"
    compress(nano_folder, parse_recipe(text, "test"), tmp_path / "whole")
    swaps, recipes = planned
    (swap,) = [each for each in swaps[component] if each.place == len(steps.split("|"))]
    make_component(recipes[swap.variant], tmp_path / "made", _no_calibration)
    files = sorted(file.name for file in (tmp_path / "made").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "whole" / component).iterdir())
    for name in files:
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "whole" / component / name).read_bytes(), name
    (weights,) = [name for name in files if name.endswith(".safetensors")]
    header = 8 + int.from_bytes((tmp_path / "made" / weights).read_bytes()[:8], "little")
    assert (tmp_path / "made" / weights).stat().st_size - header == swap.weights_bytes
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_is_trained_again(nano_folder: Path, artifact: Path, tmp_path: Path) -> None:
    manifest = json.loads((artifact / MANIFEST_NAME).read_text())
    prune, cast, quantize = manifest["components"]["unet"]["steps"]
    copy = _with_steps(artifact, tmp_path / "copy", "unet", [prune, {"recover": {"steps": 3}}, cast, quantize])
    swaps, recipes = plan_steps(open_source(str(nano_folder)), open_source(str(copy)), LABELS)
    assert [(swap.step, swap.variant in recipes) for swap in swaps["unet"]] == [
        ("prune", True), ("recover", False), ("cast", False), ("quantize", False),
    ]  # fmt: skip
    reasons = [swap.not_measured for swap in swaps["unet"]]
    assert reasons[0] is None is reasons[3] and "trained again" in reasons[1] and reasons[1] == reasons[2]
    # Smoothing is calibrated on what the recovered UNet's pipeline draws.
    assert "trained again" in (swaps["text_encoder"][0].not_measured or "") and swaps["vae"][0].not_measured is None


def test_no_steps_where_they_are_not_those_of_this_original(nano_folder: Path, artifact: Path, tmp_path: Path) -> None:
    original, compressed = open_source(str(nano_folder)), open_source(str(artifact))
    with pytest.raises(EvaluationError, match="no artifact of sdcompress"):
        plan_steps(original, original, LABELS)
    with pytest.raises(EvaluationError, match=r"made of .*nano, whose text_encoder is not this original's"):
        plan_steps(open_source("tiny-sd"), compressed, LABELS)
    unknown = _with_steps(artifact, tmp_path / "unknown", "unet", [{"shrink": {}}])
    with pytest.raises(EvaluationError, match=r"cannot be planned on this original: .*no step 'shrink'"):
        plan_steps(original, open_source(str(unknown)), LABELS)


def test_an_evaluation_goes_step_by_step(
    in_process: type[InProcess],
    nano_folder: Path,
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    write = steps_attribution.write_safetensors
    monkeypatch.setattr(
        steps_attribution, "write_safetensors", lambda part, to: (made.append(part.spec.name), write(part, to))
    )
    # Killed in the first step: after both pipelines' 6 pictures, and 2 x 3 of the text encoder's swap.
    in_process.left = 6 + 6 + 3
    with pytest.raises(EvaluationError, match="killed"):
        evaluate(str(nano_folder), str(artifact), tmp_path, settings=SETTINGS)
    assert len(list((tmp_path / STEPS_FOLDER).iterdir())) == 1
    in_process.left = 10_000
    report = evaluate(str(nano_folder), str(artifact), tmp_path, settings=SETTINGS)
    assert sorted(made) == ["text_encoder", "unet", "unet"]  # the one that lay there was not made again
    assert list((tmp_path / STEPS_FOLDER).iterdir()) == []  # as large as the component, and drawn

    entries = {entry["name"]: entry for entry in report["attribution"]}
    prune, cast, quantize = entries["unet"]["ladder"]
    assert [step["step"] for step in (prune, cast, quantize)] == ["prune", "cast", "quantize"]
    assert all(step["pictures"] == 3 and step["latency_s"]["ratio"] > 0 for step in (prune, cast, quantize))
    # 3 bits on a random UNet move its pictures by far more than rounding to bfloat16 does.
    assert quantize["psnr_db"]["mean"] < cast["psnr_db"]["mean"] - 3 and quantize["verdict"] == "worse"
    assert prune["adds"]["psnr_db"]["difference"] is None  # before the first step the pictures are the original's
    gained = [step["adds"]["psnr_db"]["difference"] for step in (cast, quantize)]
    assert sum(gained) == pytest.approx(quantize["psnr_db"]["mean"] - prune["psnr_db"]["mean"], abs=1e-9)
    assert all(quantize[name] == entries["unet"][name] for name in ("psnr_db", "ssim", "verdict", "saved_bytes")[:3])
    assert entries["vae"]["ladder"][0]["step"] == "cast"

    console = Console(width=80, file=io.StringIO())
    print_report(Report.model_validate(report), console)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80 and "…" not in text
    assert all(words in text for words in ("after step", "+ prune", "+ quantize", "+ smooth"))
    assert "Step by step" in (tmp_path / "report.md").read_text()
    assert "+ quantize" in (tmp_path / "report.html").read_text()
