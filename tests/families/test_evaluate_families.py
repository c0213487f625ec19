"""`evaluate` of each family's tiny pipeline against its int8 artifact, its workers in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import InProcess, evaluate

from sdcompress import compress
from sdcompress.calibration.prompts import PromptSet
from sdcompress.evaluation import session
from sdcompress.evaluation.settings import EvaluationSettings

QUICK = ("controlnet", "sd3")
REST = ("inpaint", "flux", "sdxl-refiner", "lcm", "pixart", "sana", "tiny-autoencoder")


@pytest.mark.parametrize("family", [*QUICK, *(pytest.param(name, marks=pytest.mark.full) for name in REST)])
def test_a_family_against_its_int8_artifact(
    family: str, family_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WorkerProcess", InProcess)
    original = family_folder(family)
    compress(original, "int8", tmp_path / "int8")
    settings = EvaluationSettings(
        prompts=PromptSet("letters", ("ab", "cd"), 2),
        num_inference_steps=4,  # the refiner draws a third of them
        height=32,
        width=32,
        use_clip=False,
        noise_floor=("seed", "bfloat16", "batch"),
        noise_floor_count=2,
        component_metrics_count=1,
        attribute=True,
        attribute_count=1,
    )
    report = evaluate(str(original), str(tmp_path / "int8"), tmp_path / "out", settings=settings)
    assert report["similarity"]["identical_latents"] is True
    assert {sample[side]["width"] for sample in report["samples"] for side in ("original", "compressed")} == {32}
    assert set(report["noise_floor"]["sources"]) == {"seed", "bfloat16", "batch"}
    components = set(report["original"]["components"])
    assert set(report["component_metrics"]) == components == {entry["name"] for entry in report["attribution"]}
    for name in components & {"unet", "transformer", "controlnet"}:
        # Weights alone have 45 to 48 dB in int8 (uniform steps of 1/127 of a channel's largest); layers add up.
        assert 20 < report["component_metrics"][name]["noise_sqnr_db"]["mean"] < 60
    wanted = {"inpaint": {"image", "mask_image"}, "controlnet": {"image"}, "sdxl-refiner": {"image"}}
    assert set(report["settings"]["input_pictures"]) == wanted.get(family, set())
