"""ONNX folders for the tests of the runtime and the exporter, exported once a session: tiny-sd and random pipelines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_pipelines import sdxl

from sdcompress import load_recipe, open_source
from sdcompress.execution.execute import execute
from sdcompress.planning.plan import make_plan

# In sizes that are fixed: a test of that, and traced in a third of the time.
STATIC = """
schema_version: 1
description: Pictures of 16x16 and 16 tokens.
target: onnx
components:
  "*":
    - cast: {{dtype: {dtype}}}
    - export: {{static_shapes: {{height: 16, width: 16, sequence: 16, guidance: {guidance}}}}}
"""
EXPORT = """
import sys
from pathlib import Path
from sdcompress import load_recipe, open_source
from sdcompress.planning.plan import make_plan
from sdcompress.execution.execute import execute
for model, recipe, out in zip(*[iter(sys.argv[1:])] * 3):
    execute(make_plan(load_recipe(recipe), open_source(model)), Path(out))
"""


@pytest.fixture(scope="session")
def onnx_tiny_sd(static_exports: subprocess.Popen[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-sd as the recipe onnx-fp32 makes it, safety checker included; do not write into it."""
    folder = tmp_path_factory.mktemp("onnx") / "tiny-sd"
    execute(make_plan(load_recipe("onnx-fp32"), open_source("tiny-sd")), folder)
    return folder


@pytest.fixture(scope="session")
def onnx_nano_sdxl(static_exports: subprocess.Popen[bytes]) -> Path:
    """`nano_sdxl` in float32 as an ONNX folder for one size, without guidance; do not write into it."""
    return exported_to(static_exports, "nano-sdxl")


@pytest.fixture(scope="session")
def onnx_nano_half(static_exports: subprocess.Popen[bytes]) -> Path:
    """The nano pipeline in float16 as an ONNX folder for one size; do not write into it."""
    return exported_to(static_exports, "nano-half")


@pytest.fixture(scope="session")
def static_exports(
    nano_folder: Path, nano_sdxl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that exports the random pipelines, on another core than tiny-sd is traced on meanwhile."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'sdcompress[onnx]')")
    folder = tmp_path_factory.mktemp("static")
    arguments = []
    for name, model, dtype, guidance in (
        ("nano-sdxl", nano_sdxl, "float32", "false"),
        ("nano-half", nano_folder, "float16", "true"),
    ):
        recipe = folder / f"{name}.yaml"
        recipe.write_text(STATIC.format(dtype=dtype, guidance=guidance))
        arguments += [str(model), str(recipe), str(folder / name)]
    command = [sys.executable, "-c", EXPORT, *arguments]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        yield process
        process.kill()


def exported_to(process: subprocess.Popen[bytes], name: str) -> Path:
    """The folder of that name, once the process has written all; its output where it failed."""
    folder = Path(process.args[-1]).parent  # type: ignore[index]
    assert process.wait() == 0, (folder / "log").read_text()
    return folder / name


@pytest.fixture(scope="session")
def nano_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random float32 SDXL with guidance embedding (as LCM has it), about 1 M parameters; do not write into it."""
    import torch
    from diffusers import DDIMScheduler

    folder = tmp_path_factory.mktemp("models") / "nano-sdxl"
    torch.manual_seed(0)
    pipeline = sdxl(folder.parent, unet_options={"time_cond_proj_dim": 16}, scheduler=DDIMScheduler())
    pipeline.save_pretrained(folder)
    return folder
