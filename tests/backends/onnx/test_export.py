"""Exported pipelines: what was predicted is what is written, and it draws what the original draws."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from listeners import Events

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'sdcompress[onnx]')")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'sdcompress[onnx]')")

import onnx
from short_recipes import quick

from sdcompress import load_recipe, open_pipeline, open_source
from sdcompress.errors import UserError
from sdcompress.execution.execute import execute
from sdcompress.execution.graph_tracing import planned_graphs
from sdcompress.execution.verify import verify
from sdcompress.files.artifact import partial_folder
from sdcompress.files.manifest import MANIFEST_NAME
from sdcompress.planning.plan import Plan, make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.sources.opening import open_folder

RECIPES = ("onnx-fp32", "onnx-int8", "onnx-int4", "onnx-mixed")
PARTS = ("safety_checker", "text_encoder", "unet", "vae_decoder", "vae_encoder")
# Float32 sums in another order over a few denoising steps stay far below; half of one of 256 levels is 2e-3.
TOLERANCE = 1e-3
STANDARD = """
schema_version: 1
description: Attention as standard operators.
target: onnx
components:
  "*":
    - cast: {dtype: float32}
    - export: {attention: standard}
"""

Exported = Callable[[str], tuple[Plan, Path]]


@pytest.fixture(scope="module")
def exported(onnx_tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Recipe -> its plan for tiny-sd and the artifact, made when it is first asked for; do not write into it."""
    source, folder = open_source("tiny-sd"), tmp_path_factory.mktemp("exported")
    made = {"onnx-fp32": (make_plan(load_recipe("onnx-fp32"), source), onnx_tiny_sd)}

    def export(name: str) -> tuple[Plan, Path]:
        if name not in made:
            plan = make_plan(quick(load_recipe(name)), source)
            execute(plan, folder / name)
            made[name] = plan, folder / name
        return made[name]

    return export


def draw(pipeline: Any, prompt: str = "a red heart", **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.safety_checker = None
    settings = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(3)}
    picture: np.ndarray = pipeline(prompt, **{**settings, **options}).images[0]
    assert picture.std() > 0.01
    return picture


def hashes(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of all but the manifest, which tells the time of nothing but lists these."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def graph_of(folder: Path, part: str) -> onnx.ModelProto:
    return onnx.load(str(folder / part / "model.onnx"), load_external_data=False)


def check_predicted(plan: Plan, folder: Path) -> None:
    """Every component's tensors hold the parameters and bytes that the plan predicted."""
    components = open_folder(folder).components
    assert list(components) == list(plan.source.components)
    for name, spec in components.items():
        after = plan.after(name)
        assert (spec.parameters, spec.weights_bytes) == (after.parameters, after.weights_bytes), name
        assert spec.config == json.loads(json.dumps(dict(after.config))), name


@pytest.mark.parametrize("name", RECIPES)
def test_predicted_is_actual(name: str, exported: Exported) -> None:
    plan, folder = exported(name)
    check_predicted(plan, folder)
    assert verify(folder) == []
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    assert set(manifest["components"]["vae"]["graphs"]) == {"vae_encoder", "vae_decoder"}
    for component in manifest["components"].values():
        for passes in component["graphs"].values():
            assert all(each["matched"] == each["candidates"] for each in passes), passes


def test_planned_graphs_are_those_of_the_export(exported: Exported) -> None:
    """Children trace what was planned, and the export finds it under the same names."""
    plan, _ = exported("onnx-int8")
    graphs = planned_graphs(plan, plan.source.components)
    assert sorted(graph.part.folder for graph in graphs) == sorted(PARTS)
    assert all(graph.file.is_file() for graph in graphs)
    assert [graph.part.folder for graph in planned_graphs(plan, {"unet"})] == ["unet"]


@pytest.mark.parametrize("name", RECIPES)
def test_stock_optimum_draws_the_same(name: str, exported: Exported, open_stock: Callable[[Path], Any]) -> None:
    """Bit for bit: the same graphs on the same inputs and the same number of threads."""
    _, folder = exported(name)
    assert np.array_equal(draw(open_stock(folder)), draw(open_pipeline(folder, device="cpu", threads=1)))


@pytest.mark.parametrize("name", RECIPES)
def test_files_are_as_the_format_wants_them(name: str, exported: Exported) -> None:
    _, folder = exported(name)
    for part in PARTS:
        file = folder / part / "model.onnx"
        onnx.checker.check_model(str(file))
        graph = graph_of(folder, part).graph
        inside = [tensor for tensor in graph.initializer if not tensor.external_data]
        # protobuf's limit is 2 GB a file: what grows with the model must lie outside.
        assert all(len(tensor.raw_data) <= 256 for tensor in inside) and file.stat().st_size < 2**20
        data = (folder / part / "model.onnx_data").stat().st_size
        assert data >= sum(int(entry.value) for tensor in graph.initializer for entry in tensor.external_data
                           if entry.key == "length")  # fmt: skip
        domains = {entry.domain: entry.version for entry in graph_of(folder, part).opset_import}
        assert domains[""] == 21 and set(domains) <= {"", "com.microsoft"}


def test_same_bytes_twice(exported: Exported, tmp_path: Path) -> None:
    """The recipe has layers in float, in 8 bits and in 4 bits; for activations see the interrupted run below."""
    plan, folder = exported("onnx-mixed")
    execute(plan, tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(folder)


def test_interrupted_run_resumes_without_calibrating_again(exported: Exported, tmp_path: Path) -> None:
    plan, whole = exported("onnx-int8")
    out = tmp_path / "out"
    events = Events(stop=lambda event: event.activity == "writing" and event.subject == "unet" and not event.note)
    with pytest.raises(KeyboardInterrupt):
        execute(plan, out, listener=events)
    state = json.loads((partial_folder(out) / "state.json").read_text())
    assert {event.activity for event in events} == {"calibrating", "writing"} and not out.exists()
    assert "text_encoder" in state["finished"] and "unet" not in state["finished"] and set(state["ranges"]) == {
        "text_encoder", "unet", "vae"
    }  # fmt: skip
    calibration = Events("calibrating")
    execute(plan, out, resume=True, listener=calibration)
    assert not calibration and not partial_folder(out).exists()
    assert hashes(out) == hashes(whole)


def test_manifest_tells_of_activations(exported: Exported) -> None:
    _, folder = exported("onnx-int8")
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    for component in ("text_encoder", "unet", "vae"):
        layers = manifest["components"][component]["layers"]
        rounded = {name for name, entry in layers.items() if entry.get("activations") == "int8"}
        assert rounded == set(manifest["activation_ranges"][component]) != set()
    assert "activations" not in manifest["components"]["unet"]["layers"]["conv_in"]
    quantizers = [node for node in graph_of(folder, "unet").graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) > 20


@pytest.mark.parametrize("name", ["onnx-int8", "onnx-int4", "onnx-mixed"])
def test_quantized_unet_stays_near_the_original(name: str, exported: Exported) -> None:
    """One step's noise against float32's: 25 to 27 dB when this was written, on a CPU without VNNI."""
    _, folder = exported(name)
    inputs = unet_inputs()
    expected = run_unet(exported("onnx-fp32")[1], inputs)
    error = run_unet(folder, inputs) - expected
    sqnr_db = 10 * np.log10(np.square(expected).mean() / np.square(error).mean())
    assert sqnr_db > 23


def unet_inputs() -> dict[str, np.ndarray]:
    unet = open_source("tiny-sd").components["unet"].config
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn((2, 4, 16, 16), generator=generator).numpy(),
        "timestep": np.array(501.0, dtype=np.float32),
        "encoder_hidden_states": torch.randn((2, 32, unet["cross_attention_dim"]), generator=generator).numpy(),
    }


def run_unet(folder: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "unet" / "model.onnx"), providers=["CPUExecutionProvider"])
    noise: np.ndarray = session.run(["out_sample"], inputs)[0]
    return noise


def test_standard_attention_gives_the_same_with_standard_operators(exported: Exported, tmp_path: Path) -> None:
    execute(make_plan(parse_recipe(STANDARD, "standard"), open_source("tiny-sd")), tmp_path / "out")
    for part in PARTS:
        model = graph_of(tmp_path / "out", part)
        assert {node.domain for node in model.graph.node} | {each.domain for each in model.opset_import} == {""}
        assert not any(node.op_type == "Attention" for node in model.graph.node)
    fused = exported("onnx-fp32")[1]
    assert any(node.op_type == "MultiHeadAttention" for node in graph_of(fused, "unet").graph.node)
    inputs = unet_inputs()
    # Float32 sums in another order; the noise is of size 1.
    np.testing.assert_allclose(run_unet(tmp_path / "out", inputs), run_unet(fused, inputs), atol=1e-4)
    assert verify(tmp_path / "out") == []


def test_any_size_and_batch(exported: Exported) -> None:
    """What is not fixed is free: the graph against torch in sizes that it was not traced with."""
    _, folder = exported("onnx-fp32")
    unet = open_pipeline("tiny-sd", device="cpu").unet
    generator = torch.Generator().manual_seed(0)
    for batch, height, width, tokens in ((1, 8, 24, 32), (3, 16, 8, 5)):
        sample = torch.randn((batch, 4, height, width), generator=generator)
        text = torch.randn((batch, tokens, unet.config.cross_attention_dim), generator=generator)
        with torch.no_grad():
            expected = unet(sample, 11, encoder_hidden_states=text).sample
        actual = run_unet(
            folder,
            {
                "sample": sample.numpy(),
                "timestep": np.array(11, dtype=np.float32),
                "encoder_hidden_states": text.numpy(),
            },
        )
        np.testing.assert_allclose(actual, expected, atol=1e-4)  # of size 1, sums in another order


def test_broken_weights_are_named(exported: Exported, tmp_path: Path) -> None:
    """Of a tensor so small that it is kept inside model.onnx, whose writer wraps errors."""
    import shutil

    from safetensors.torch import load_file, save_file

    from sdcompress.sources.source import ASSETS

    folder = Path(shutil.copytree(ASSETS / "tiny-sd", tmp_path / "model"))
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["quant_conv.weight"][0, 0] = float("nan")
    save_file(tensors, file)
    text = STANDARD.replace("- export: {attention: standard}", "- quantize: {format: int8}")
    with pytest.raises(UserError, match=r"vae\.quant_conv\.weight: 1 of 64 values are NaN or infinite"):
        execute(make_plan(parse_recipe(text, "r"), open_source(str(folder))), tmp_path / "out")
    assert not partial_folder(tmp_path / "out").exists() and not (tmp_path / "out").exists()


def test_sdxl_of_one_size(nano_sdxl: Path, onnx_nano_sdxl: Path) -> None:
    """Two text encoders, added embeddings, guidance embedding; its pictures: tests/backends/test_onnx_runtime.py."""
    source = open_folder(onnx_nano_sdxl)
    assert {name: spec.parameters for name, spec in source.components.items()} == {
        name: spec.parameters for name, spec in open_folder(nano_sdxl).components.items()
    }
    assert verify(onnx_nano_sdxl) == []
    for part in ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"):
        graph = graph_of(onnx_nano_sdxl, part).graph
        for value in (*graph.input, *graph.output):
            dimensions = value.type.tensor_type.shape.dim
            assert all(each.HasField("dim_value") for each in dimensions), (part, value.name)
    sizes = {value.name: [each.dim_value for each in value.type.tensor_type.shape.dim]
             for value in graph_of(onnx_nano_sdxl, "unet").graph.input}  # fmt: skip
    assert sizes["sample"] == [1, 4, 8, 8] and sizes["time_ids"] == [1, 6] and sizes["timestep"] == []


def test_float16(nano_folder: Path, onnx_nano_half: Path) -> None:
    manifest = json.loads((onnx_nano_half / MANIFEST_NAME).read_text())
    plan = make_plan(parse_recipe(json.dumps(manifest["recipe"]), "manifest"), open_source(str(nano_folder)))
    check_predicted(plan, onnx_nano_half)
    assert verify(onnx_nano_half) == []
    assert plan.after("unet").weights_bytes == 2 * plan.after("unet").parameters
    original, half = open_pipeline(nano_folder, device="cpu"), open_pipeline(onnx_nano_half, device="cpu")
    assert half.unet.dtype == half.vae.dtype == torch.float16
    generator = torch.Generator().manual_seed(0)
    sample, text = torch.randn((2, 4, 8, 8), generator=generator), torch.randn((2, 16, 32), generator=generator)
    with torch.no_grad():
        expected = original.unet(sample, 11, encoder_hidden_states=text).sample
        actual = half.unet(sample, 11, encoder_hidden_states=text).sample.float()
    # Some hundred roundings of 2^-11 each, at random: about 2^-11 x 10 of the whole.
    assert float((actual - expected).norm() / expected.norm()) < 0.01
    assert draw(half).shape == (16, 16, 3)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_float16_tiny_sd_of_any_size(tmp_path: Path) -> None:
    plan = make_plan(load_recipe("onnx-fp16"), open_source("tiny-sd"))
    execute(plan, tmp_path / "out")
    check_predicted(plan, tmp_path / "out")
    assert verify(tmp_path / "out") == []
    pictures = [
        draw(open_pipeline(model, device="cpu"), height=64, width=96) for model in ("tiny-sd", tmp_path / "out")
    ]
    assert float(np.abs(pictures[0] - pictures[1]).mean()) < 2 / 255  # of 256 levels; see test_float16


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_sdxl_of_any_size(nano_sdxl: Path, tmp_path: Path) -> None:
    plan = make_plan(load_recipe("onnx-fp32"), open_source(str(nano_sdxl)))
    execute(plan, tmp_path / "out")
    check_predicted(plan, tmp_path / "out")
    options = {"height": 16, "width": 32, "num_images_per_prompt": 2}
    pictures = [draw(open_pipeline(model, device="cpu"), "ab", **options) for model in (nano_sdxl, tmp_path / "out")]
    assert float(np.abs(pictures[0] - pictures[1]).max()) <= TOLERANCE
