"""Artifacts on the device draw what they draw on the CPU: moved, cast, offloaded and compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from short_recipes import VARIED

from sdcompress import generate, load_recipe, open_pipeline, open_source
from sdcompress.execution.execute import execute
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe

OF_BITSANDBYTES = ("nf4", "nf4-conv", "mixed")
HOOKS = ("enable_model_cpu_offload", "enable_sequential_cpu_offload")
# Float32 sums in another order, and TF32 off: a tenth of one of 256 levels.
A_TENTH = 0.1 / 255

Artifact = Callable[[str], Path]


@pytest.fixture(scope="module")
def artifact(nano_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("artifacts")

    def make(name: str) -> Path:
        if name in OF_BITSANDBYTES:
            pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install 'sdcompress[bnb]')")
        if not (folder / name).exists():
            recipe = parse_recipe(VARIED, "r") if name == "varied" else load_recipe(name)
            execute(make_plan(recipe, open_source(str(nano_folder))), folder / name)
        return folder / name

    return make


def draw(pipeline: Any) -> torch.Tensor:
    """A picture, [3, height, width] float32 on the CPU."""
    generator = torch.Generator("cpu").manual_seed(0)
    picture = pipeline("ab", num_inference_steps=2, output_type="pt", generator=generator).images[0]
    return torch.as_tensor(picture).float().cpu()


@pytest.mark.parametrize("name", ["varied", "int8", "int8-dynamic", "pruned-int8", "fp16", *OF_BITSANDBYTES])
def test_as_on_the_cpu(name: str, artifact: Artifact, device: str) -> None:
    pictures = [draw(open_pipeline(artifact(name), device=where, dtype="float32")) for where in ("cpu", device)]
    assert float((pictures[0] - pictures[1]).abs().max()) < A_TENTH


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["varied", "int8-dynamic"])
def test_half_precision(name: str, dtype: str, artifact: Artifact, device: str) -> None:
    """A UNet's prediction against float32's: some dozens of layers in a row, each with some roundings of eps / 2."""
    exact = open_pipeline(artifact(name), device="cpu", dtype="float32").unet
    unet = open_pipeline(artifact(name), device=device, dtype=dtype).unet
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn((2, unet.config.in_channels, 16, 16), generator=generator)
    states = torch.randn((2, 8, unet.config.cross_attention_dim), generator=generator)
    with torch.no_grad():
        want = exact(sample, 500, encoder_hidden_states=states).sample
        got = unet(sample.to(device, unet.dtype), 500, encoder_hidden_states=states.to(device, unet.dtype)).sample
    assert got.dtype == unet.dtype and got.device.type == device
    eps = torch.finfo(unet.dtype).eps
    assert float((got.float().cpu() - want).norm() / want.norm()) < 10 * eps


def test_moved_and_cast_as_opened_there(artifact: Artifact, device: str) -> None:
    moved = open_pipeline(artifact("varied"), device="cpu", dtype="float32").to(device).to(torch.float16)
    opened = open_pipeline(artifact("varied"), device=device, dtype="float16")
    for part in ("unet", "vae", "text_encoder"):
        left, right = getattr(moved, part).state_dict(), getattr(opened, part).state_dict()
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert value.device.type == device
            assert value.dtype == right[name].dtype and torch.equal(value, right[name]), name


@pytest.mark.parametrize("hook", HOOKS)
def test_offloading(hook: str, artifact: Artifact, device: str) -> None:
    if device == "cpu" and "sequential" in hook:
        pytest.skip("accelerate cannot offload layer by layer to the CPU from the CPU, whatever the pipeline")
    want = draw(open_pipeline(artifact("varied"), device=device, dtype="float32"))
    offloaded = open_pipeline(artifact("varied"), device="cpu", dtype="float32")
    getattr(offloaded, hook)(device=device)
    assert float((draw(offloaded) - want).abs().max()) < A_TENTH


@torch.no_grad()
def test_a_compiled_unet_is_one_graph(artifact: Artifact, device: str) -> None:
    unet = open_pipeline(artifact("varied"), device=device, dtype="float32").unet
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn((2, unet.config.in_channels, 16, 16), generator=generator).to(device)
    states = torch.randn((2, 8, unet.config.cross_attention_dim), generator=generator).to(device)
    step = torch.tensor(500, device=device)
    want = unet(sample, step, encoder_hidden_states=states).sample
    torch._dynamo.reset()
    compiled = torch.compile(unet, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    got = compiled(sample, step, encoder_hidden_states=states).sample
    # Float32 sums in another order, through some dozens of layers; Triton's float32 exp and rsqrt are off by 2 ulp.
    assert float((got - want).norm() / want.norm()) < 400 * 2.0**-24


def test_generate(artifact: Artifact, device: str) -> None:
    pictures = []
    for where in ("cpu", device):
        drawn = generate(str(artifact("int8")), "ab", seed=3, steps=2, device=where, dtype="float32")
        pictures.append(torch.frombuffer(bytearray(drawn.tobytes()), dtype=torch.uint8).int())
    assert int((pictures[0] - pictures[1]).abs().max()) <= 1  # rounded to another of 256 levels at worst
