"""Noise floor, component metrics and attribution on a tiny random pipeline, its workers in this process."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from in_process import InProcess, evaluate
from rich.console import Console

from sdcompress import compress
from sdcompress.calibration.prompts import PromptSet
from sdcompress.errors import EvaluationError
from sdcompress.evaluation.attribution import mixed_folder
from sdcompress.evaluation.metrics.scorer import TINY_SD_SCORER
from sdcompress.evaluation.settings import EvaluationSettings
from sdcompress.planning.recipe import parse_recipe
from sdcompress.report import Report, print_report

RECIPE = """
schema_version: 1
description: Only the UNet, coarsely.
components: {unet: [{quantize: {format: int3}}]}
gates: [size_ratio<=0.9, psnr_db>=99]
"""
SETTINGS = EvaluationSettings(
    prompts=PromptSet("letters", ("ab", "cd", "ef", "gh"), 4),
    num_inference_steps=3,
    threads=1,
    clip=str(TINY_SD_SCORER),
    noise_floor=("seed", "bfloat16", "batch"),
    noise_floor_count=3,
    component_metrics_count=2,
    attribute=True,
    attribute_count=2,
)


@pytest.fixture(scope="module")
def coarse(nano_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano pipeline with nothing but its UNet in 3 bits."""
    out = tmp_path_factory.mktemp("made") / "coarse"
    compress(nano_folder, parse_recipe(RECIPE, "test"), out)
    return out


def _printed(report: dict[str, Any]) -> str:
    console = Console(width=80, file=io.StringIO())
    print_report(Report.model_validate(report), console)
    return console.file.getvalue()


def test_everything_that_is_measured(
    in_process: type[InProcess], nano_folder: Path, coarse: Path, tmp_path: Path
) -> None:
    report = evaluate(str(nano_folder), str(coarse), tmp_path, settings=SETTINGS)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert set(in_process.started) == {"original", "compressed", "attribution", "scoring"}
    assert set(in_process.started.values()) == {1}
    # 8 of the pairs, 9 of the floor, whose first two are recorded, and 3 swaps in turn with the original.
    assert in_process.asked["draw"] == 8 + 9 + 3 * 2 * 2

    floor = report["noise_floor"]
    assert list(floor["sources"]) == ["seed", "bfloat16", "batch"] and floor["not_measured"] == {}
    psnr = {name: entry["psnr_db"]["mean"] for name, entry in floor["sources"].items()}
    batch = floor["sources"]["batch"]
    # Batches change the last bits of float32, bfloat16 keeps 8 bits, another seed makes another picture.
    assert batch["identical"] == 3 or psnr["batch"] > psnr["bfloat16"]
    assert psnr["bfloat16"] > psnr["seed"] and 5 < psnr["seed"] < 30
    assert {each["seed"] for each in floor["sources"]["seed"]["samples"]} == {4, 5, 6}

    assert report["verdicts"]["psnr_db"]["verdict"] == "worse"
    assert report["verdicts"]["psnr_db"]["floor"] == pytest.approx(psnr["bfloat16"])
    assert set(report["metrics"]) == {"clip_image"} and "cmmd" in report["set_metrics"]
    assert set(report["not_measured"]) >= {"ms_ssim", "lpips"}

    alone = report["component_metrics"]
    assert alone["text_encoder"]["cosine"]["min"] == pytest.approx(1, abs=1e-9)  # the same weights and inputs
    assert alone["vae"]["decode_psnr_db"]["identical"] == 2
    assert len(alone["unet"]["noise_sqnr_db"]["timesteps"]) == 3 and alone["unet"]["noise_sqnr_db"]["identical"] == 0
    assert 5 < alone["unet"]["noise_sqnr_db"]["mean"] < 30  # 3 bits to nearest leave about 13 dB of a layer
    for name in ("text_encoder", "unet", "vae"):
        assert report["original"]["components"][name]["macs"] == report["compressed"]["components"][name]["macs"] > 0
    assert report["change"]["macs"]["ratio"] == 1

    swaps = {entry["name"]: entry for entry in report["attribution"]}
    assert report["attribution"][0]["name"] == "unet" and set(swaps) == {"unet", "text_encoder", "vae"}
    assert [swaps[name]["identical"] for name in ("text_encoder", "vae", "unet")] == [2, 2, 0]
    # Nothing but the UNet was compressed, so swapping it in is the compressed pipeline.
    for index in (0, 2):
        swapped, whole = (tmp_path / "images" / label / f"{index:04d}.png" for label in ("swap-unet", "compressed"))
        assert swapped.read_bytes() == whole.read_bytes()
    assert swaps["unet"]["steps"][0]["quantize"]["format"] == "int3" and swaps["vae"]["steps"] == []
    assert [swaps[name]["verdict"] for name in ("unet", "vae")] == ["worse", "within noise"]
    # Of a single step, the component is what the step makes; there is none where there was no step.
    (only,) = swaps["unet"]["ladder"]
    assert only["step"] == "quantize" and swaps["vae"]["ladder"] == []
    assert all(only[name] == swaps["unet"][name] for name in ("psnr_db", "ssim", "verdicts", "latency_s"))
    saved = report["original"]["weights_bytes"] - report["compressed"]["weights_bytes"]
    assert sum(entry["saved_bytes"] for entry in swaps.values()) == saved
    assert swaps["unet"]["latency_s"]["ratio"] > 0

    assert [each["passed"] for each in report["gates"]] == [True, False]  # the recipe's, from the manifest
    assert (tmp_path / "junit.xml").is_file() and not (tmp_path / "recording.pt").exists()
    text = _printed(report)
    assert max(len(line) for line in text.splitlines()) <= 80 and "…" not in text
    for words in ("bfloat16", "worse", "alone, against the original", "after step", "FAILED", "Not measured: LPIPS"):
        assert words in text
    page = (tmp_path / "report.md").read_text()
    assert all(words in page for words in ("## Metrics", "## Attribution", "## Gates", "text\\_encoder"))


def test_interrupted_anywhere_nothing_is_drawn_twice(
    in_process: type[InProcess], nano_folder: Path, coarse: Path, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"num_inference_steps": 1, "use_clip": False, "component_metrics": False})
    evaluate(str(nano_folder), str(coarse), tmp_path / "whole", settings=settings)
    whole = dict(in_process.asked)
    in_process.asked.clear()
    # Within the pair's 8 pictures, the floor's 9 (of bfloat16 last), and the 12 of attribution (3 swaps, 2 prompts,
    # both sides).
    for left in (5, 7, 11):
        in_process.left = left
        with pytest.raises(EvaluationError, match="killed"):
            evaluate(str(nano_folder), str(coarse), tmp_path / "out", settings=settings)
    in_process.left = 10_000
    report = evaluate(str(nano_folder), str(coarse), tmp_path / "out", settings=settings)
    assert whole["draw"] == 29
    # A swap's picture and the original's beside it are one record: the last kill fell between the two.
    assert in_process.asked["draw"] == 30
    assert len(report["attribution"]) == 3 and set(report["noise_floor"]["sources"]) == {"seed", "bfloat16", "batch"}
    before = dict(in_process.asked)
    assert evaluate(str(nano_folder), str(coarse), tmp_path / "out", settings=settings) == report
    assert dict(in_process.asked) == before
    more = settings.model_copy(update={"noise_floor": ("seed",), "noise_floor_count": 4})
    evaluate(str(nano_folder), str(coarse), tmp_path / "out", settings=more)
    assert in_process.asked["draw"] - before["draw"] == 1  # three of the four were there


def test_against_itself_all_is_within_noise(in_process: type[InProcess], nano_folder: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"num_inference_steps": 1, "attribute": False})
    report = evaluate(str(nano_folder), str(nano_folder), tmp_path, settings=settings, gates=["psnr_db>=99"])
    assert {each["verdict"] for each in report["verdicts"].values()} == {"within noise"}
    assert set(report["verdicts"]) == {"clip_score", "psnr_db", "ssim"}
    assert report["similarity"]["identical"] == report["similarity"]["pairs"] == 4  # PSNR is infinite
    assert report["gates"] == [{"gate": "psnr_db>=99", "value": None, "passed": True, "infinite": True}]
    assert report["set_metrics"]["cmmd"]["value"] == 0 < report["set_metrics"]["cmmd"]["floor"]["seed"]
    assert report["component_metrics"]["unet"]["noise_sqnr_db"]["mean"] is None  # infinite too
    assert "infinite" in _printed(report) and "identical at every timestep" in _printed(report)


def test_what_cannot_be_asked_for(in_process: type[InProcess], nano_folder: Path, tmp_path: Path) -> None:
    bfloat16 = SETTINGS.model_copy(
        update={"dtype": "bfloat16", "num_inference_steps": 1, "noise_floor": ("bfloat16",), "attribute": False}
    )
    report = evaluate(str(nano_folder), str(nano_folder), tmp_path, settings=bfloat16)
    assert report["noise_floor"]["not_measured"] == {"bfloat16": "the pipelines run in bfloat16 already"}
    assert report["noise_floor"]["sources"] == {}
    assert "Not measured: noise in bfloat16" in _printed(report).replace("\n", " ")


def test_a_mixed_folder_is_all_links_to_the_original_but_one(nano_folder: Path, coarse: Path, tmp_path: Path) -> None:
    mixed = mixed_folder(nano_folder, "unet", coarse / "unet", ["diffusers", "UNet"], tmp_path / "mixed")
    assert (mixed / "unet").resolve() == (coarse / "unet").resolve()
    assert (mixed / "vae").resolve() == (nano_folder / "vae").resolve()
    index = json.loads((mixed / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline" and index["unet"] == ["diffusers", "UNet"]
