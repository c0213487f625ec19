"""A model card with what was measured: the hub can read it, and the artifact still verifies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from sdcompress import compress
from sdcompress.errors import ArtifactError
from sdcompress.files import artifact as artifact_module
from sdcompress.files.artifact import file_problems
from sdcompress.files.manifest import read_manifest
from sdcompress.report import Report
from sdcompress.report.measured_card import PICTURE, add_measurements

Alter = Callable[..., Report]


@pytest.fixture(scope="module")
def made(nano_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "artifact"
    compress(nano_folder, "int8", out)
    return out


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "artifact"))


@pytest.fixture
def report(make_report: Callable[..., Report], alter: Alter, made: Path, tmp_path: Path) -> Report:
    """A report that says it is of the artifact; its pictures' sheet is in the folder `report`."""
    manifest = read_manifest(made)
    changes = {
        f"compressed.{name}": sum(getattr(entry, name).compressed for entry in manifest.components.values())
        for name in ("parameters", "weights_bytes")
    }
    report = alter(make_report(), {"recipe": manifest.recipe, **changes})
    (tmp_path / "report").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "report" / "images.png")
    return report


def test_card_holds_what_was_measured(artifact: Path, report: Report, alter: Alter, tmp_path: Path) -> None:
    weights = (artifact / "unet" / "diffusion_pytorch_model.safetensors").stat()
    named = alter(report, {"settings.prompt_set": "mine | <b>: [x](y)"})
    add_measurements(artifact, named, tmp_path / "report")
    card = ModelCard.load(artifact / "README.md")
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["clip_score_drift"].metric_value == pytest.approx(-0.5)
    assert results["psnr"].metric_value == pytest.approx(41.5)  # the mean of 40, 41, 42, 43
    assert results["psnr"].task_type == "text-to-image"
    assert results["psnr"].dataset_name == "mine | <b>: [x](y)"
    assert (card.data.library_name, card.data.model_name) == ("diffusers", f"{open_name(artifact)}, compressed")
    assert "| time per picture |" in card.text and "mine \\| \\<b\\>" in card.text
    assert f"({PICTURE})" in card.text and (artifact / PICTURE).read_bytes()[:4] == b"\x89PNG"
    assert "The recipe:" in card.text  # what stood there before stays
    assert file_problems(artifact, read_manifest(artifact)) == []
    after = (artifact / "unet" / "diffusion_pytorch_model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_nlink) == (weights.st_ino, weights.st_mtime_ns, 1)  # not copied
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "report"]


def open_name(artifact: Path) -> str:
    return Path(read_manifest(artifact).source.name).name


def test_a_card_is_filled_anew_not_twice(artifact: Path, report: Report, alter: Alter, tmp_path: Path) -> None:
    add_measurements(artifact, report, tmp_path / "report")
    once = (artifact / "README.md").read_text()
    changed = alter(report, {"change.clip_score.difference": -7.0})
    add_measurements(artifact, changed, tmp_path / "report")
    twice = (artifact / "README.md").read_text()
    assert twice.count("## What was measured") == 1 and "-7.00" in twice and twice != once
    assert file_problems(artifact, read_manifest(artifact)) == []


@pytest.mark.parametrize("where", ["write", "rename"])
def test_killed_in_between_the_artifact_is_whole(
    artifact: Path, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = (artifact / "README.md").read_bytes()

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact_module, {"write": "write_json", "rename": "publish"}[where], fail)
    with pytest.raises(KeyboardInterrupt):
        add_measurements(artifact, report, tmp_path / "report")
    monkeypatch.undo()
    assert (artifact / "README.md").read_bytes() == before
    assert file_problems(artifact, read_manifest(artifact)) == []
    add_measurements(artifact, report, tmp_path / "report")  # what the killed one left is no hindrance
    assert file_problems(artifact, read_manifest(artifact)) == []


def test_another_pipelines_report_is_refused(artifact: Path, report: Report, alter: Alter, tmp_path: Path) -> None:
    before = (artifact / "README.md").read_bytes()
    with pytest.raises(ArtifactError, match="another recipe"):
        add_measurements(artifact, alter(report, {"recipe": {}}), tmp_path / "report")
    larger = alter(report, {"compressed.parameters": report.compressed.parameters + 1})
    with pytest.raises(ArtifactError, match="give the evaluation of this artifact"):
        add_measurements(artifact, larger, tmp_path / "report")
    assert (artifact / "README.md").read_bytes() == before
