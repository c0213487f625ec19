"""The ONNX Runtime pipeline against torch's and optimum's, and what it says when something cannot be done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sdcompress import open_pipeline
from sdcompress.errors import UserError

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'sdcompress[onnx]')")
onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install 'sdcompress[onnx]')")

from sdcompress.backends.onnx import components, runtime  # noqa: E402
from sdcompress.backends.onnx.loading import open_onnx_pipeline  # noqa: E402
from sdcompress.backends.onnx.runtime import choose_runtime, open_session  # noqa: E402

PROMPTS = ("a red heart", "a blue star", "three green apples")
# Float32 sums in another order over a few denoising steps stay far below; half of one of 256 levels is 2e-3.
TOLERANCE = 1e-3


def draw(pipeline: Any, prompt: str, seed: int = 0, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    settings = {"num_inference_steps": 4, "output_type": "np", "generator": generator, **options}
    return pipeline(prompt, **settings).images[0]


def difference(first: np.ndarray, second: np.ndarray) -> float:
    assert first.shape == second.shape and first.std() > 0.01
    return float(np.abs(first - second).max())


@pytest.fixture(scope="module")
def torch_pipeline() -> Any:
    return open_pipeline("tiny-sd", device="cpu")


@pytest.fixture(scope="module")
def pipeline(onnx_tiny_sd: Path) -> Any:
    return open_pipeline(onnx_tiny_sd, device="cpu", threads=1)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_same_pictures_as_torch(prompt: str, pipeline: Any, torch_pipeline: Any) -> None:
    seed = PROMPTS.index(prompt)
    assert type(pipeline) is type(torch_pipeline)
    assert difference(draw(pipeline, prompt, seed), draw(torch_pipeline, prompt, seed)) <= TOLERANCE


def test_several_pictures_in_another_size(pipeline: Any, torch_pipeline: Any) -> None:
    options = {"height": 96, "width": 64, "num_images_per_prompt": 2, "num_inference_steps": 2}
    assert difference(draw(pipeline, "a cat", **options), draw(torch_pipeline, "a cat", **options)) <= TOLERANCE


@pytest.mark.parametrize("skipped", [0, 1, 2])
def test_clip_skip(skipped: int, pipeline: Any, torch_pipeline: Any) -> None:
    """Of an earlier layer the pipeline takes final_layer_norm itself; 0 means the last, which is normalized once."""
    words = torch_pipeline.tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids
    text = getattr(torch_pipeline.text_encoder, "text_model", torch_pipeline.text_encoder)
    with torch.no_grad():
        hidden = torch_pipeline.text_encoder(words, output_hidden_states=True).hidden_states
        expected = text.final_layer_norm(hidden[-(skipped + 1)])
    actual, _ = pipeline.encode_prompt("a cat", "cpu", 1, False, clip_skip=skipped)
    assert float((actual - expected).abs().max()) < 1e-4  # of values around 1


def test_drawing_over_a_picture(pipeline: Any, torch_pipeline: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    start = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    pictures = []
    for each in (pipeline, torch_pipeline):
        pictures.append(draw(StableDiffusionImg2ImgPipeline(**each.components), "a cat", image=start, strength=0.5))
    assert difference(*pictures) <= TOLERANCE


def test_sdxl_with_guidance_embedding(nano_sdxl: Path, onnx_nano_sdxl: Path) -> None:
    pictures = [draw(open_pipeline(folder, device="cpu"), "ab", 1) for folder in (nano_sdxl, onnx_nano_sdxl)]
    assert difference(*pictures) <= TOLERANCE


def test_low_memory_gives_identical_pictures_with_one_session_open(onnx_tiny_sd: Path, pipeline: Any) -> None:
    frugal = open_pipeline(onnx_tiny_sd, device="cpu", threads=1, low_memory=True)
    graphs = [frugal.text_encoder.graph, frugal.unet.graph, frugal.vae.graph, frugal.vae.encoder_graph]
    graphs.append(frugal.safety_checker.graph)
    assert all(graph._session is None for graph in graphs)
    assert np.array_equal(draw(frugal, "a cat"), draw(pipeline, "a cat"))
    assert [graph._session is not None for graph in graphs].count(True) == 1
    assert np.array_equal(draw(frugal, "a cat"), draw(pipeline, "a cat"))


def test_flagged_pictures_are_black_as_torch_makes_them(pipeline: Any, torch_pipeline: Any) -> None:
    checker, stand_in = torch_pipeline.safety_checker, pipeline.safety_checker
    clip_input = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        clean = stand_in(clip_input=clip_input, images=torch.ones(2, 3, 8, 8))
        assert clean[1] == checker(clip_input=clip_input, images=torch.ones(2, 3, 8, 8))[1]
    flags = {"has_nsfw_concepts": torch.tensor([False, True])}
    graph = SimpleNamespace(run=lambda *_: flags, inputs={"clip_input": None, "images": None})
    flagging = components.OnnxSafetyChecker(graph, None)  # type: ignore[arg-type]
    for images in (np.full((2, 4, 4, 3), np.nan), torch.ones(2, 3, 4, 4), [np.ones((4, 4, 3)), np.ones((4, 4, 3))]):
        first = np.array(images[0])
        black, flagged = flagging(clip_input=clip_input, images=images)
        assert flagged == [False, True] and black is images
        assert np.array_equal(np.array(black[0]), first, equal_nan=True)
        assert not np.array(black[1]).any()


def test_config_has_what_old_files_leave_out(onnx_tiny_sd: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(onnx_tiny_sd, tmp_path / "old")
    config = json.loads((folder / "unet/config.json").read_text())
    del config["time_cond_proj_dim"]
    (folder / "unet/config.json").write_text(json.dumps(config))
    vae = json.loads((folder / "vae_decoder/config.json").read_text())
    (folder / "vae_decoder/config.json").write_text(json.dumps({**vae, "force_upcast": True}))
    opened = open_onnx_pipeline(folder, "cpu")
    assert opened.unet.config.time_cond_proj_dim is None and opened.unet.config.in_channels == 4
    assert opened.vae.config.force_upcast is False  # which would move the VAE to float32


def test_what_a_graph_cannot_do_is_said(pipeline: Any, onnx_tiny_sd: Path) -> None:
    sample, text = torch.zeros(1, 4, 8, 8), torch.zeros(1, 16, 192)
    for wrong, message in (
        ({"mid_block_additional_residual": sample}, "takes no mid_block_residual"),
        ({"cross_attention_kwargs": {"scale": 1.0}}, "takes no cross_attention_kwargs"),
        ({"added_cond_kwargs": {"image_embeds": text}}, "takes no image_embeds"),
        ({"timestep_cond": text}, "takes no timestep_cond"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline.unet(sample, 1, encoder_hidden_states=text, **wrong)
    with pytest.raises(UserError, match="one timestep for the whole batch, not 2"):
        pipeline.unet(sample, torch.tensor([1, 2]), encoder_hidden_states=text)
    with pytest.raises(UserError, match="takes no attention_mask"):
        pipeline.text_encoder(torch.zeros((1, 32), dtype=torch.int64), attention_mask=torch.ones(1, 32))
    with pytest.raises(AttributeError, match="has no enable_tiling: it runs an ONNX graph"):
        pipeline.vae.enable_tiling()
    with pytest.raises(UserError, match="precision of an ONNX pipeline is in its files"):
        pipeline.to(torch.float16)
    with pytest.raises(UserError, match="stays on the device it was opened on"):
        pipeline.to("meta")
    with pytest.raises(UserError, match="an ONNX pipeline is its folder"):
        pipeline.save_pretrained(onnx_tiny_sd / "again")
    assert pipeline.to("cpu", torch.float32) is pipeline


def test_sdxl_needs_its_own_inputs(onnx_nano_sdxl: Path) -> None:
    unet = open_onnx_pipeline(onnx_nano_sdxl, "cpu").unet
    with pytest.raises(UserError, match="needs timestep_cond, which this pipeline does not give"):
        unet(torch.zeros(1, 4, 8, 8), 1, encoder_hidden_states=torch.zeros(1, 16, 64))


@pytest.mark.parametrize(
    ("device", "available", "gpu", "chosen"),
    [
        ("auto", ["CPUExecutionProvider"], True, "cpu"),
        ("auto", ["CUDAExecutionProvider", "CPUExecutionProvider"], True, "cuda"),
        ("auto", ["CUDAExecutionProvider", "CPUExecutionProvider"], False, "cpu"),
        ("auto", ["DmlExecutionProvider", "CPUExecutionProvider"], False, "directml"),
        ("auto", ["CoreMLExecutionProvider", "CPUExecutionProvider"], False, "cpu"),
        ("auto", ["OpenVINOExecutionProvider", "CPUExecutionProvider"], False, "cpu"),
        ("mps", ["CoreMLExecutionProvider", "CPUExecutionProvider"], False, "mps"),
        ("openvino", ["OpenVINOExecutionProvider", "CPUExecutionProvider"], False, "openvino"),
        ("cuda:1", ["CUDAExecutionProvider", "CPUExecutionProvider"], False, "cuda"),
    ],
)
def test_choice_of_provider(
    device: str, available: list[str], gpu: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = choose_runtime(device)
    assert (found.device, found.provider) == (chosen, runtime.PROVIDERS[chosen][0])
    assert found.device_id == (1 if device == "cuda:1" else 0)
    assert found.threads == torch.get_num_threads()


def test_provider_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for device, package in (
        ("cuda", "onnxruntime-gpu"),
        ("directml", "onnxruntime-directml"),
        ("openvino", "onnxruntime-openvino"),
        ("mps", "onnxruntime"),
    ):
        with pytest.raises(UserError, match=f"--device {device}: .* pip install {package}"):
            choose_runtime(device)
    for nonsense in ("npu", "cpu:1", "cuda:x"):
        with pytest.raises(UserError, match=f"--device {nonsense}: use auto, cpu, cuda"):
            choose_runtime(nonsense)


def test_provider_that_does_not_start(onnx_tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that ONNX Runtime quietly opened on the CPU in place of the GPU."""
    onto_cpu = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: onto_cpu)
    chosen = runtime.Runtime("cuda", "CUDAExecutionProvider", 0, 1, False)
    with pytest.raises(UserError, match="CUDAExecutionProvider did not start"):
        open_session(onnx_tiny_sd / "unet/model.onnx", chosen)


@pytest.mark.parametrize(
    ("operator", "domain", "number", "message"),
    [
        ("Attention", "", "FLOAT", "has no operator .*Attention.*attention: standard"),
        ("Fancy", "com.example", "FLOAT", "has no operator com.example:Fancy.*attention: standard"),
        ("Abs", "", "STRING", "cannot open it on CPUExecutionProvider: .*Abs"),  # the operator, but not for this type
    ],
)
def test_operator_that_the_provider_lacks(
    operator: str, domain: str, number: str, message: str, tmp_path: Path
) -> None:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, getattr(TensorProto, number), [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"], domain=domain)], "g", [x], [y])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(file))
    with pytest.raises(UserError, match=message) as told:
        open_session(file, choose_runtime("cpu"))
    assert str(file) in str(told.value)


def test_messages_of_onnx_runtime_are_understood() -> None:
    """As ONNX Runtime 1.32 words them where a provider or an older version cannot run a graph."""
    chosen = choose_runtime("cpu")
    for said, told in (
        (
            "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Attention(24) node with "
            "name 'node_Attention_12'",
            "has no operator Attention; .*attention: standard",
        ),
        (
            "ONNX Runtime only *guarantees* support for models stamped with official released onnx opset versions. "
            "Opset 26 is under development and support for this is limited.",
            "is of ONNX opset 26",
        ),
    ):
        with pytest.raises(UserError, match=told):
            raise runtime._opening_error(Path("unet/model.onnx"), chosen, said)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def with_another_class(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "unet": ["diffusers", "UVit2DModel"]}))


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("vae_decoder/model.onnx", Path.unlink, r"vae_decoder.model\.onnx: missing"),
        ("unet/model.onnx_data", Path.unlink, r"unet.model\.onnx: ONNX Runtime cannot open it"),
        ("text_encoder/model.onnx", cut_short, r"text_encoder.model\.onnx: ONNX Runtime cannot open it"),
        ("model_index.json", with_another_class, "cannot run UVit2DModel with ONNX Runtime"),
    ],
)
def test_folders_that_are_not_whole(
    file: str, spoil: Callable[[Path], None], message: str, onnx_tiny_sd: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(onnx_tiny_sd, tmp_path / "copy"))
    spoil(folder / file)
    with pytest.raises(UserError, match=message):
        open_pipeline(folder, device="cpu", low_memory=file == "model_index.json")


def test_without_an_encoder_pictures_cannot_be_encoded(onnx_tiny_sd: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(onnx_tiny_sd, tmp_path / "copy"))
    shutil.rmtree(folder / "vae_encoder")
    with pytest.raises(UserError, match="has no vae_encoder"):
        open_pipeline(folder, device="cpu", low_memory=True).vae.encode(torch.zeros(1, 3, 64, 64))


def test_onnxruntime_that_is_not_installed(onnx_tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(UserError, match=r"pip install 'sdcompress\[onnx\]'"):
        open_pipeline(onnx_tiny_sd, device="cpu")


def test_options_that_do_not_go_together(onnx_tiny_sd: Path) -> None:
    with pytest.raises(UserError, match=r"--dtype float16: .* is an ONNX pipeline, whose precision is in its files"):
        open_pipeline(onnx_tiny_sd, dtype="float16")
    with pytest.raises(UserError, match="--low-memory: tiny-sd is a torch pipeline"):
        open_pipeline("tiny-sd", low_memory=True)
