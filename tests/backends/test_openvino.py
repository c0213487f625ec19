"""OpenVINO folders: what they hold, what they compute beside ONNX Runtime, and the commands that take them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from listeners import interrupt_writing
from typer.testing import CliRunner

from sdcompress import load_recipe, open_pipeline, open_source
from sdcompress.cli.main import app
from sdcompress.errors import ArtifactError, SourceError, UserError
from sdcompress.execution.execute import execute
from sdcompress.execution.verify import verify
from sdcompress.files.artifact import partial_folder
from sdcompress.files.manifest import read_manifest
from sdcompress.planning.plan import make_plan
from sdcompress.sources.openvino_file import DATA_FILE, MODEL_FILE, read_ir

openvino = pytest.importorskip("openvino", reason="openvino is not installed (pip install 'sdcompress[openvino]')")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'sdcompress[onnx]')")

from sdcompress.backends.onnx.runtime import choose_runtime  # noqa: E402
from sdcompress.backends.openvino.convert import write_openvino  # noqa: E402
from sdcompress.backends.openvino.runtime import choose_openvino_runtime  # noqa: E402

PARTS = ("text_encoder", "unet", "vae_encoder", "vae_decoder", "safety_checker")
# Float32 sums in another order: 7e-7 was the most on these graphs; ten times that is no other computation.
SAME_COMPUTATION = 1e-5
# Over a few denoising steps that stays far below half of one of 256 levels, 2e-3.
SAME_PICTURE = 1e-3


@pytest.fixture(scope="module")
def folder(onnx_tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-sd in float32 for OpenVINO; do not write into it."""
    out = tmp_path_factory.mktemp("openvino") / "tiny-sd"
    write_openvino(open_source(str(onnx_tiny_sd)), out)
    return out


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    return open_pipeline(folder, threads=1)


def sample_inputs(part: Any) -> dict[str, torch.Tensor]:
    """Seeded inputs of tiny-sd's sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"sample": (2, 4, 16, 16), "encoder_hidden_states": (2, 16, 192), "latent_sample": (1, 4, 16, 16),
             "clip_input": (1, 3, 64, 64), "images": (1, 8, 8, 3)}  # fmt: skip
    if part.file.parent.name == "vae_encoder":
        sizes["sample"] = (1, 3, 64, 64)
    given: dict[str, torch.Tensor] = {}
    for name in part.inputs:
        if name == "timestep":
            given[name] = torch.tensor(300)
        elif name == "input_ids":
            given[name] = torch.randint(0, 200, (2, 16), generator=generator)
        else:
            given[name] = torch.randn(sizes[name], generator=generator)
    return given


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Length of the difference over the expected one's."""
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-9))


def draw(pipeline: Any, prompt: str, **options: Any) -> np.ndarray:
    settings = {"num_inference_steps": 3, "output_type": "np", **options}
    return pipeline(prompt, generator=torch.Generator().manual_seed(0), **settings).images[0]


@pytest.mark.parametrize("name", PARTS)
def test_each_part_computes_what_onnx_runtime_does(name: str, folder: Path, onnx_tiny_sd: Path) -> None:
    ours = choose_openvino_runtime(threads=1).graph(folder / name / MODEL_FILE)
    theirs = choose_runtime("cpu", 1).graph(onnx_tiny_sd / name / "model.onnx")
    assert ours.inputs == theirs.inputs
    assert set(theirs.outputs) <= set(ours.outputs)
    given = sample_inputs(theirs)
    expected = theirs.run(given)
    got = ours.run(given, list(expected))
    for output, value in expected.items():
        assert got[output].dtype == value.dtype
        assert distance(got[output], value) <= SAME_COMPUTATION, output


def test_the_same_pictures_as_torch(pipeline: Any, folder: Path) -> None:
    original = open_pipeline("tiny-sd", device="cpu")
    if not hasattr(original.text_encoder, "text_model"):  # diffusers asks for it, transformers 5 has none
        object.__setattr__(original.text_encoder, "text_model", original.text_encoder)
    careful = open_pipeline(folder, threads=1, low_memory=True)
    assert type(pipeline) is type(original)
    for options in ({}, {"height": 96, "width": 64, "num_images_per_prompt": 2, "clip_skip": 1}):
        expected = draw(original, "a red heart", **options)
        assert expected.std() > 0.01
        for each in (pipeline, careful):
            assert float(np.abs(draw(each, "a red heart", **options) - expected).max()) <= SAME_PICTURE


def test_nothing_is_lost_on_the_way(folder: Path, onnx_tiny_sd: Path) -> None:
    before, after = open_source(str(onnx_tiny_sd)), open_source(str(folder))
    assert after.format == "openvino" and not after.notes
    for name, spec in before.components.items():
        assert dict(after.components[name].tensors) == dict(spec.tensors)
        assert after.components[name].config == spec.config
    manifest = read_manifest(folder)
    assert manifest.recipe == read_manifest(onnx_tiny_sd).recipe
    assert manifest.converted is not None and manifest.converted["to"] == "openvino"
    assert verify(folder) == []


def test_eight_bits_stay_eight_bits(nano_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "int8.yaml"
    recipe.write_text(
        "schema_version: 1\ndescription: Eight bits.\ntarget: onnx\ncomponents:\n"
        "  unet:\n    - cast: {dtype: float32}\n    - quantize: {format: int8-unsaturated, activations: int8}\n"
        "    - export: {static_shapes: {height: 16, width: 16, sequence: 16}}\n"
        '  "*":\n    - cast: {dtype: float32}\n'
        "    - export: {static_shapes: {height: 16, width: 16, sequence: 16}}\n"
        "calibration: {prompt_count: 1, num_inference_steps: 2}\n"
    )
    execute(make_plan(load_recipe(str(recipe)), open_source(str(nano_folder))), tmp_path / "onnx")
    write_openvino(open_source(str(tmp_path / "onnx")), tmp_path / "ir")
    before, after = (open_source(str(tmp_path / each)).components["unet"] for each in ("onnx", "ir"))
    assert after.bits_per_weight == before.bits_per_weight < 9
    from diffusers import UNet2DConditionModel

    generator = torch.Generator().manual_seed(0)
    given = {
        "sample": torch.randn((2, 4, 8, 8), generator=generator), "timestep": torch.tensor(300),
        "encoder_hidden_states": torch.randn((2, 16, 32), generator=generator),
    }  # fmt: skip
    with torch.no_grad():
        exact = UNet2DConditionModel.from_pretrained(nano_folder / "unet")(*given.values()).sample
    ours = choose_openvino_runtime(threads=1).graph(tmp_path / "ir" / "unet" / MODEL_FILE).run(given)["out_sample"]
    theirs = choose_runtime("cpu", 1).graph(tmp_path / "onnx" / "unet" / "model.onnx").run(given)["out_sample"]
    # Both multiply the codes exactly (onnx/test_packaging.py) and round to the same steps. Float32 sums in another
    # order put some values on the other side of an edge, so that their errors are two drawings from one distribution:
    # for 40 inputs the distances' quotients were between 0.92 and 1.07, on AVX2 and on AVX512-VNNI alike.
    assert 0 < distance(ours, exact) <= 1.5 * distance(theirs, exact)


def test_the_command_and_what_it_refuses(onnx_tiny_sd: Path, nano_folder: Path, tmp_path: Path) -> None:
    def convert(model: Path, out: Path, *options: str) -> Any:
        return CliRunner().invoke(app, ["convert", str(model), "--to", "openvino", "-o", str(out), *options])

    out = tmp_path / "new" / "out"
    result = convert(onnx_tiny_sd, out)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out) and "unet: 16,295,556 parameters" in result.stderr
    assert not partial_folder(out).exists()
    again = convert(onnx_tiny_sd, out).exception
    assert isinstance(again, ArtifactError) and "--force" in str(again)
    assert convert(onnx_tiny_sd, out, "--force").exit_code == 0
    torch_pipeline = convert(nano_folder, tmp_path / "torch").exception
    assert isinstance(torch_pipeline, UserError) and "is no ONNX folder; export it first" in str(torch_pipeline)
    partial_folder(tmp_path / "mine").mkdir()
    left = convert(onnx_tiny_sd, tmp_path / "mine").exception
    assert isinstance(left, ArtifactError) and "an interrupted run left this" in str(left)


def test_an_interrupted_run_leaves_nothing(onnx_tiny_sd: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_openvino(open_source(str(onnx_tiny_sd)), tmp_path / "new" / "out", listener=interrupt_writing("unet"))
    assert not any(tmp_path.iterdir())


def test_a_graph_openvino_cannot_read(onnx_tiny_sd: Path, tmp_path: Path) -> None:
    import onnx

    copy = Path(shutil.copytree(onnx_tiny_sd, tmp_path / "copy"))
    file = copy / "text_encoder" / "model.onnx"
    model = onnx.load(str(file), load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, str(file))
    with pytest.raises(ArtifactError, match=r"text_encoder/model\.onnx: OpenVINO cannot convert it.*NoSuchOperator"):
        write_openvino(open_source(str(copy)), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not partial_folder(tmp_path / "out").exists()


def test_without_the_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for attempt in (
        lambda: open_pipeline(folder),
        lambda: write_openvino(open_source("tiny-sd"), tmp_path / "out"),
    ):
        with pytest.raises(UserError, match=r"pip install 'sdcompress\[openvino\]'"):
            attempt()


def test_files_that_are_not_whole(folder: Path, tmp_path: Path) -> None:
    part = Path(shutil.copytree(folder / "vae_decoder", tmp_path / "part"))
    assert read_ir(part / MODEL_FILE).counted
    data = (part / DATA_FILE).read_bytes()
    (part / DATA_FILE).write_bytes(data[:-100_000])
    with pytest.raises(SourceError, match="bytes before the last tensor"):
        read_ir(part / MODEL_FILE)
    (part / DATA_FILE).write_bytes(data)
    text = (part / MODEL_FILE).read_text()
    (part / MODEL_FILE).write_text(text[: len(text) // 2])
    with pytest.raises(SourceError, match="is no whole OpenVINO IR"):
        read_ir(part / MODEL_FILE)


def test_devices_and_precisions_that_are_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match="an OpenVINO folder runs on auto, cpu, gpu, npu"):
        open_pipeline(folder, device="cuda")
    with pytest.raises(UserError, match="computes in auto, float32, bfloat16, float16"):
        open_pipeline(folder, dtype="int8")
    if "NPU" not in openvino.Core().available_devices:
        with pytest.raises(UserError, match="use --device cpu"):
            open_pipeline(folder, device="npu")


@pytest.mark.full
def test_evaluate_takes_both_sides(folder: Path, tmp_path: Path) -> None:
    from in_process import evaluate

    from sdcompress.evaluation.settings import EvaluationSettings

    few = EvaluationSettings(prompt_count=2, num_inference_steps=3, threads=1, device="cpu", noise_floor=())
    report = evaluate("tiny-sd", str(folder), tmp_path, settings=few)
    assert report["compressed"]["parameters"] == open_source("tiny-sd").parameters
    assert report["similarity"]["ssim"]["min"] > 0.999  # float32 on both sides: single values round the other way
    assert (tmp_path / "report.html").is_file()
