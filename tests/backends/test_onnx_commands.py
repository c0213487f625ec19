"""ONNX folders in the commands: inspect, generate, verify and evaluate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from in_process import evaluate
from PIL import Image
from typer.testing import CliRunner

from sdcompress.cli.main import app
from sdcompress.errors import EvaluationError, UserError
from sdcompress.evaluation.settings import EvaluationSettings
from sdcompress.files.manifest import MANIFEST_NAME
from sdcompress.sources.opening import open_source
from sdcompress.sources.source import ASSETS

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'sdcompress[onnx]')")

FEW = {"prompt_count": 2, "num_inference_steps": 3, "threads": 1, "device": "cpu", "noise_floor": ()}


def test_inspect_counts_what_the_torch_pipeline_has(onnx_tiny_sd: Path) -> None:
    original, exported = open_source("tiny-sd"), open_source(str(onnx_tiny_sd))
    assert exported.format == "onnx" and not exported.notes
    assert exported.pipeline_class == original.pipeline_class
    assert {name: spec.parameters for name, spec in exported.components.items()} == {
        name: spec.parameters for name, spec in original.components.items()
    }
    assert exported.weights_bytes == 4 * exported.parameters
    answer = CliRunner().invoke(app, ["inspect", str(onnx_tiny_sd), "--json"])
    assert answer.exit_code == 0
    assert json.loads(answer.stdout)["components"]["vae"]["parameters"] == original.components["vae"].parameters


def test_generate_draws_what_torch_draws(artifact: Path, tmp_path: Path) -> None:
    pictures = []
    for model, options in (("tiny-sd", []), (str(artifact), ["--low-memory", "--threads", "1"])):
        out = tmp_path / f"{len(pictures)}.png"
        command = ["generate", model, "a red heart", "-o", str(out), "--device", "cpu", "--steps", "3", *options]
        answer = CliRunner().invoke(app, command)
        assert answer.exit_code == 0, answer.output
        pictures.append(np.asarray(Image.open(out)).astype(int))
    assert pictures[0].std() > 2
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # one of 256 levels: a value on the edge rounds either way


def test_generate_on_what_is_not_there(onnx_tiny_sd: Path, tmp_path: Path) -> None:
    command = ["generate", str(onnx_tiny_sd), "a cat", "-o", str(tmp_path / "a.png"), "--device", "openvino"]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, UserError) and "pip install onnxruntime-openvino" in str(error)


@pytest.fixture
def artifact(onnx_tiny_sd: Path, tmp_path: Path) -> Path:
    """The exported tiny-sd, as a copy that a test may spoil."""
    return Path(shutil.copytree(onnx_tiny_sd, tmp_path / "artifact"))


def test_verify_opens_it(artifact: Path) -> None:
    answer = CliRunner().invoke(app, ["verify", str(artifact)])
    assert answer.exit_code == 0 and "opens" in answer.output
    manifest = json.loads((artifact / MANIFEST_NAME).read_text())
    manifest["components"]["vae"]["parameters"]["compressed"] += 1
    (artifact / "unet/config.json").unlink()
    shutil.copy(ASSETS / "tiny-sd/unet/config.json", artifact / "unet/config.json")
    with (artifact / "unet/model.onnx_data").open("r+b") as stream:
        stream.write(b"spoiled")
    (artifact / MANIFEST_NAME).write_text(json.dumps(manifest))
    error = CliRunner().invoke(app, ["verify", str(artifact)]).exception
    assert "model.onnx_data: its SHA-256 is not the manifest's" in str(error)
    assert "vae: parameters is 1,557,191, the manifest says 1,557,192" in str(error)


def test_evaluate_gives_one_report_of_torch_against_onnx(artifact: Path, tmp_path: Path) -> None:
    settings = EvaluationSettings(**FEW, dtype="float32", low_memory=True)
    report = evaluate("tiny-sd", str(artifact), tmp_path / "out", settings=settings)
    original, compressed = report["original"], report["compressed"]
    assert report["similarity"]["identical_latents"] is True
    assert report["similarity"]["ssim"]["min"] > 0.999
    assert report["scorer"] is not None and abs(report["change"]["clip_score"]["difference"]) < 0.1
    assert report["change"]["parameters"]["ratio"] == 1 and report["change"]["weights_bytes"]["ratio"] == 2
    for component in ("text_encoder", "unet", "vae", "safety_checker"):
        assert compressed["components"][component]["latency_s"] > 0
        assert compressed["components"][component]["parameters"] == original["components"][component]["parameters"]
    spent = sum(part["latency_s"] for part in compressed["components"].values())
    assert spent <= compressed["latency_s_quantiles"]["p95"] * 1.01
    alone = report["component_metrics"]
    assert alone["unet"]["noise_sqnr_db"]["mean"] > 80  # the same float32 weights, whose rounding is near 140 dB
    assert alone["text_encoder"]["cosine"]["min"] > 1 - 1e-6 and alone["safety_checker"]["agreement"] == 1
    assert original["macs"] > 0 and compressed["macs"] is None  # ONNX Runtime does not tell
    assert original["resident_weights_bytes"] > 0
    assert compressed["resident_weights_bytes"] is None  # ONNX Runtime does not tell
    for process in (report["processes"][side][-1] for side in ("original", "compressed")):
        assert process["resident_after_open_bytes"] > process["resident_after_imports_bytes"]
    assert report["environment"]["device"] == {"original": "cpu", "compressed": "cpu"}
    assert report["environment"]["threads"] == {"original": 1, "compressed": 1}
    assert report["settings"]["opened_with"] == {
        "original": {"device": "cpu", "dtype": "float32", "threads": 1, "low_memory": False},
        "compressed": {"device": "cpu", "dtype": "auto", "threads": 1, "low_memory": True},
    }


def test_low_memory_needs_an_onnx_folder(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="--low-memory: neither pipeline is an ONNX folder"):
        evaluate("tiny-sd", "tiny-sd", tmp_path / "out", settings=EvaluationSettings(**FEW, low_memory=True))


def test_an_onnx_component_can_be_swapped_into_the_torch_pipeline(onnx_tiny_sd: Path, tmp_path: Path) -> None:
    from sdcompress.evaluation.samples import Drawing
    from sdcompress.evaluation.worker.pipeline import PipelineWorker
    from sdcompress.evaluation.worker.requests import Draw, Open

    pictures = []
    worker = PipelineWorker()  # which opens one pipeline after the other
    for swap in ({}, {"swap": "unet", "swap_from": str(onnx_tiny_sd)}, {"swap": "vae", "swap_from": str(onnx_tiny_sd)}):
        file = tmp_path / f"{len(pictures)}.png"
        opened = worker.open(Open(path=str(ASSETS / "tiny-sd"), device="cpu", dtype="float32", threads=1, **swap))
        drawing = Drawing(index=0, prompt="a red heart", seed=3)
        drawn = worker.draw(Draw(drawings=[drawing], options={"num_inference_steps": 3}, picture=str(file)))
        assert drawn.component_latency_s.keys() >= {"unet", "vae"}
        # A later pipeline's peak memory holds what the earlier took.
        assert (opened.peak_memory_bytes is None) is (drawn.peak_memory_bytes is None) is bool(swap)
        pictures.append(np.asarray(Image.open(file)).astype(int))
        stand_in = type(worker._pipeline.components[swap.get("swap", "unet")]).__name__
        assert stand_in.startswith("Onnx") is bool(swap)
    for picture in pictures[1:]:
        assert np.abs(pictures[0] - picture).max() <= 1  # the same weights; a value on the edge rounds either way
