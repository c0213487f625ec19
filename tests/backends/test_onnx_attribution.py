"""Attribution where the compressed pipeline, or both, are ONNX folders: nano, 16x16, its workers in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import InProcess, evaluate

from sdcompress.calibration.prompts import PromptSet
from sdcompress.errors import EvaluationError
from sdcompress.evaluation.settings import EvaluationSettings
from sdcompress.evaluation.steps_attribution import ACTIVATIONS
from sdcompress.execution.execute import execute
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.sources.opening import open_source

pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'sdcompress[onnx]')")

EXPORT = "    - export: {static_shapes: {height: 16, width: 16, sequence: 16}}\n"
QUANTIZE = "    - quantize: {format: int8, activations: int8, activations_exclude: [conv_in]}\n"
HEAD = "schema_version: 1\ndescription: d\ntarget: onnx\n"
SETTINGS = EvaluationSettings(
    prompts=PromptSet("letters", ("ab", "cd"), 2),
    num_inference_steps=2,
    threads=1,
    device="cpu",
    use_clip=False,
    noise_floor=(),
    component_metrics=False,
    attribute=True,
    attribute_count=2,
)


@pytest.fixture(scope="module")
def exported(nano_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """nano as ONNX in float32, and with an 8-bit UNet whose activations are rounded."""
    folders = {}
    recipes = {
        "plain": f'{HEAD}components:\n  "*":\n{EXPORT}',
        "int8": f'{HEAD}components:\n  unet:\n{QUANTIZE}{EXPORT}  "*":\n{EXPORT}'
        "calibration: {prompts: [ab], num_inference_steps: 2}\n",
    }
    for name, text in recipes.items():
        folders[name] = tmp_path_factory.mktemp("onnx") / name
        execute(make_plan(parse_recipe(text, "test"), open_source(str(nano_folder))), folders[name])
    return folders


def test_components_go_from_one_onnx_folder_into_another(
    in_process: type[InProcess], exported: dict[str, Path], tmp_path: Path
) -> None:
    report = evaluate(str(exported["plain"]), str(exported["int8"]), tmp_path, settings=SETTINGS)
    entries = {entry["name"]: entry for entry in report["attribution"]}
    assert {name: entry["identical"] for name, entry in entries.items()} == {"unet": 0, "text_encoder": 2, "vae": 2}
    # Nothing but the UNet differs, so swapping it in is the compressed pipeline.
    for index in range(2):
        swapped, whole = (tmp_path / "images" / label / f"{index:04d}.png" for label in ("swap-unet", "compressed"))
        assert swapped.read_bytes() == whole.read_bytes()
    assert "ONNX folder" in entries["unet"]["ladder_not_measured"] and entries["unet"]["ladder"] == []


def test_steps_before_the_export_are_torch_components(
    in_process: type[InProcess], nano_folder: Path, exported: dict[str, Path], tmp_path: Path
) -> None:
    report = evaluate(str(nano_folder), str(exported["int8"]), tmp_path, settings=SETTINGS)
    entries = {entry["name"]: entry for entry in report["attribution"]}
    quantize, export = entries["unet"]["ladder"]
    assert (quantize["step"], quantize["note"]) == ("quantize", ACTIVATIONS) and export["step"] == "export"
    # Weights in 8 bits; then the graph, which rounds what goes into each layer to 8 bits too.
    assert quantize["psnr_db"]["mean"] > export["psnr_db"]["mean"] == entries["unet"]["psnr_db"]["mean"]
    assert quantize["saved_bytes"] > 10 * abs(export["saved_bytes"])
    assert [step["step"] for step in entries["vae"]["ladder"]] == ["export"]


def test_torch_components_do_not_go_into_onnx(nano_folder: Path, exported: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="give the torch pipeline as the original"):
        evaluate(str(exported["plain"]), str(nano_folder), tmp_path, settings=SETTINGS)
