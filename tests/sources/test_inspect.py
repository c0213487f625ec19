"""`describe` and its table: exact figures, plain arithmetic for bytes, and nothing heavy imported."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sdcompress.report.inspect_table import render, render_layers
from sdcompress.report.number_text import bytes_text
from sdcompress.sources.inspect_model import bytes_at, describe
from sdcompress.sources.opening import open_source
from sdcompress.sources.source import Source
from sdcompress.sources.spec import KINDS, ComponentSpec, TensorSpec, parameter

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
import io, sys
from rich.console import Console
from sdcompress.sources.inspect_model import describe
from sdcompress.report.inspect_table import render
from sdcompress.sources.opening import open_source
render(describe(open_source("sdxl")), Console(file=io.StringIO()))
print({"torch", "diffusers", "transformers", "onnxruntime", "bitsandbytes", "huggingface_hub"} & {*sys.modules})
"""


def rendered(source: Source, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    render(describe(source), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def packed_source() -> Source:
    """A pipeline with one quantized layer: 100 weights in 50 bytes of codes, and a scale that counts none."""
    tensors = {
        "fc.codes": TensorSpec((50,), "U8", 100),
        "fc.scale": TensorSpec((10,), "F16", 0),
        "norm.weight": parameter((10,), "F16"),
    }
    spec = ComponentSpec("unet", "diffusers", "UNet2DConditionModel", {}, tensors)
    return Source("packed", "folder", {"_class_name": "StableDiffusionPipeline"}, {"unet": spec})


def test_describe_stable_diffusion_15() -> None:
    found = json.loads(json.dumps(describe(open_source("sd15"))))
    assert (found["model"], found["kind"], found["pipeline_class"]) == ("sd15", "catalog", "StableDiffusionPipeline")
    unet = found["components"]["unet"]
    assert unet["parameters"] == sum(unet["parameters_by_kind"].values()) == 859_520_964
    assert list(unet["parameters_by_kind"]) == list(KINDS)
    assert unet["bytes_at"] == {
        "fp32": 3_438_083_856,
        "fp16": 1_719_041_928,
        "int8": 859_520_964,
        "4-bit": 429_760_482,
    }
    assert (unet["weights_bytes"], unet["dtypes"], unet["bits_per_weight"]) == (1_719_041_928, ["F16"], 16.0)
    assert found["totals"]["without_safety_checker"]["parameters"] == 1_066_235_307
    assert found["totals"]["with_safety_checker"]["parameters"] == 1_370_216_895
    assert found["has_safety_checker"] is True
    assert any("plain arithmetic" in note for note in found["notes"])


def test_totals_agree_where_there_is_no_safety_checker() -> None:
    found = describe(open_source("sdxl"))
    assert found["totals"]["without_safety_checker"] == found["totals"]["with_safety_checker"]
    assert found["has_safety_checker"] is False


def test_packed_tensors_count_what_they_stand_for() -> None:
    unet = describe(packed_source())["components"]["unet"]
    assert unet["parameters"] == 110
    assert unet["weights_bytes"] == 50 + 20 + 20
    assert unet["bits_per_weight"] == pytest.approx(8 * 90 / 110, abs=1e-4)


def test_bytes_are_whole_and_in_decimal_units() -> None:
    assert [bytes_at(3, bits) for bits in (32, 16, 8, 4)] == [12, 6, 3, 2]
    texts = {0: "0 B", 999: "999 B", 1000: "1 kB", 61_530_240: "61.5 MB", 999_600_000: "1.00 GB"}
    assert {size: bytes_text(size) for size in texts} == texts


@pytest.mark.parametrize("name", ["sd15", "sd3-medium", "flux-dev"])
def test_table_fits_80_columns_and_shortens_nothing(name: str) -> None:
    text = rendered(open_source(name))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    for spec in open_source(name).components.values():
        assert f"{spec.parameters:,}" in text
        assert spec.class_name in text
    if name == "sd15":  # with and without the safety checker
        assert "1,370,216,895" in text and "1,066,235,307" in text


def test_layers_are_listed_with_their_whole_names() -> None:
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    console = Console(file=io.StringIO(), width=40)
    render_layers({"unet": [{"layer": name, "kind": "linear", "shape": (320, 320)}]}, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.splitlines() == ["unet: 1 layers", f"  linear     320 x 320              {name}"]


def test_names_are_not_read_as_markup() -> None:
    source = open_source("sd15")
    odd = Source("[red]odd[/red]", source.kind, source.model_index, source.components)
    assert "[red]odd[/red]" in rendered(odd)


def test_inspect_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
