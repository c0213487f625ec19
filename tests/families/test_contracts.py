"""The contracts of DESIGN.md on a tiny pipeline of every family: plans come true, artifacts open, draw and repeat."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import FAMILIES

from sdcompress import open_pipeline
from sdcompress.execution.execute import execute
from sdcompress.families.registry import known_families
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import load_recipe, parse_recipe
from sdcompress.sources import catalog
from sdcompress.sources.inspect_model import describe
from sdcompress.sources.opening import open_source
from sdcompress.sources.source import Source

Folder = Callable[[str], Path]
SIZE = 32  # pixels; a multiple of what Sana's latents stand for

HEAD = "schema_version: 1\ndescription: a test\n"
RECIPES = {
    "fp16": 'components: {"*": [{cast: {dtype: float16}}]}',
    "int8": 'components: {"*": [{quantize: {format: int8}}]}',
    "uint4": 'components: {"*": [{quantize: {format: uint4, group_size: 16, keep_sensitive: false}}]}',
    "nf4": "components: {unet|transformer: [{quantize: {format: nf4}}]}",
    "nf4-conv": "components: {unet|transformer: [{quantize: {format: nf4, convolutions: true}}]}",
    "codebook": "components: {unet|transformer: [{quantize: {format: codebook4, group_size: 16}}]}",
    "rotated": "components: {unet|transformer: [{quantize: {format: int4, hadamard: true, rank: 2}}]}",
    "dynamic": "components: {unet|transformer: [{quantize: {format: int8, activations: int8}}]}",
}
CALIBRATED = {
    "gptq": "components:\n"
    "  unet|transformer: [{quantize: {format: uint4, group_size: 16, rounding: gptq}}]\n"
    "  text_encoder*: [{quantize: {format: int8, rounding: gptq}}]\n"
    "  vae: [{quantize: {format: int8, rounding: gptq}}]\n",
    "smoothed": "components:\n"
    "  unet|transformer:\n"
    "    - smooth: {format: uint4, group_size: 16}\n"
    "    - quantize: {format: uint4, group_size: 16}\n",
}
CALIBRATION = f"\ncalibration: {{prompts: [a red cat], num_inference_steps: 4, height: {SIZE}, width: {SIZE}}}\n"
# What every family runs with each test; the rest of all combinations runs with `make test-full`.
TRANSFORMERS = ("sd3", "flux", "pixart", "sana")
SMOKE = {("sd3", "int8"), ("sana", "int8"), ("sd3", "gptq")}  # T5 and Gemma, which are read most differently
ALWAYS = {
    ("sdxl", "gptq"),
    ("controlnet", "gptq"),
    ("sana", "gptq"),
    *(("sd3", recipe) for recipe in (*RECIPES, "gptq")),
}
OF_THEIR_OWN = ("sdxl", "sdxl-refiner", "inpaint", "controlnet", "tiny-autoencoder", *TRANSFORMERS)


def cases(recipes: Any) -> list[Any]:
    """Family and recipe."""

    def is_quick(family: str, recipe: str) -> bool:
        return recipe == "int8" or (family in OF_THEIR_OWN and recipe == "uint4") or (family, recipe) in ALWAYS

    def marks(family: str, recipe: str) -> Any:
        if (family, recipe) in SMOKE:
            return pytest.mark.smoke
        return () if is_quick(family, recipe) else pytest.mark.full

    return [pytest.param(family, recipe, marks=marks(family, recipe)) for family in FAMILIES for recipe in recipes]


def compressed(folder: Path, recipe: str, out: Path) -> tuple[Any, Source]:
    """The plan, and the artifact made by it."""
    plan = make_plan(parse_recipe(HEAD + recipe, "recipe"), open_source(str(folder)))
    execute(plan, out)
    return plan, open_source(str(out))


def draw(pipeline: Any) -> np.ndarray:
    """One picture of two steps (over another picture: of three), floats from 0 to 1."""
    name = type(pipeline).__name__.removeprefix("ORT")
    family = known_families()[name]
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    pictures = {"image": Image.fromarray(noise), "control_image": Image.fromarray(noise)}
    pictures["mask_image"] = Image.fromarray(noise).convert("L")
    given = {argument: pictures[kind] for argument, kind in family.pictures.get(name, {}).items()}
    sizes = {} if "Img2Img" in name else {"height": SIZE, "width": SIZE}
    steps = {"num_inference_steps": 4, "strength": 0.8} if "Img2Img" in name else {"num_inference_steps": 2}
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    output = pipeline("a red cat", **given, **sizes, **steps, **family.call, generator=generator, output_type="np")
    return np.asarray(output.images[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_inspected_as_its_classes_count_it(family: str, family_folder: Folder) -> None:
    pipeline = open_pipeline(family_folder(family), device="cpu")
    counted = {
        name: sum(parameter.numel() for parameter in component.parameters())
        for name, component in pipeline.components.items()
        if isinstance(component, torch.nn.Module)
    }
    source = open_source(str(family_folder(family)))
    assert {name: spec.parameters for name, spec in source.components.items()} == counted
    assert describe(source)["totals"]["with_safety_checker"]["parameters"] == sum(counted.values())


@pytest.mark.parametrize(("family", "recipe"), cases(RECIPES))
def test_plans_come_true_and_artifacts_draw(family: str, recipe: str, family_folder: Folder, tmp_path: Path) -> None:
    text = RECIPES[recipe]
    if family == "sana" and recipe == "rotated":  # a channel that is convolved by itself cannot be rotated
        text = text.replace("rank: 2", 'rank: 2, exclude: ["*.conv_depth"]')
    plan, after = compressed(family_folder(family), text, tmp_path / "out")
    for name, spec in plan.components_after.items():
        assert dict(after.components[name].tensors) == dict(spec.tensors), name
    picture = draw(open_pipeline(tmp_path / "out", device="cpu"))
    assert np.isfinite(picture).all() and picture.std() > 0.01
    if recipe == "int8":
        # A code is off by at most 1/254 of its channel's largest weight; pictures of such pipelines by less than 1 %
        # in each pixel's root mean square here (40 dB), where another seed's picture is off by some 20 %.
        original = draw(open_pipeline(family_folder(family), device="cpu"))
        assert np.sqrt(((picture - original) ** 2).mean()) < 0.01


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_the_same_bytes_again(family: str, family_folder: Folder, tmp_path: Path) -> None:
    for out in ("one", "two"):
        compressed(family_folder(family), RECIPES["uint4"], tmp_path / out)
    files = [file.relative_to(tmp_path / "one") for file in sorted((tmp_path / "one").rglob("*.safetensors"))]
    assert files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(("family", "recipe"), cases(CALIBRATED))
def test_calibrated_recipes(family: str, recipe: str, family_folder: Folder, tmp_path: Path) -> None:
    source = open_source(str(family_folder(family)))
    _, after = compressed(family_folder(family), CALIBRATED[recipe] + CALIBRATION, tmp_path / "out")
    assert after.weights_bytes < source.weights_bytes
    assert np.isfinite(draw(open_pipeline(tmp_path / "out", device="cpu"))).all()


def test_stock_diffusers_opens_float16_of_every_family(family_folder: Folder, tmp_path: Path) -> None:
    for family in FAMILIES:
        compressed(family_folder(family), RECIPES["fp16"], tmp_path / family)
    script = (
        "import sys; from pathlib import Path\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert not name.startswith('sdcompress'), name\n"
        "sys.meta_path.insert(0, Block())\n"
        "from diffusers import DiffusionPipeline\n"
        "for folder in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    print(folder.name, type(DiffusionPipeline.from_pretrained(folder)).__name__)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert [line.split()[0] for line in run.stdout.splitlines()] == sorted(FAMILIES)


# Tracing a family's graphs takes half a minute: those of one run with every test, the rest with `make test-full`.
QUICK = ("pixart",)
ONNX = [pytest.param(name, marks=pytest.mark.smoke if name in QUICK else pytest.mark.full) for name in FAMILIES]


@pytest.mark.parametrize("family", ONNX)
def test_in_onnx_it_draws_the_same(family: str, family_folder: Folder, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    plan, after = compressed(
        family_folder(family), 'target: onnx\ncomponents: {"*": [{cast: {dtype: float32}}]}', tmp_path / "out"
    )
    # Read back from ONNX alone, a position table that torch keeps as a buffer (SD3's) counts as a parameter.
    tables = sum(
        math.prod(tensor.shape)
        for spec in plan.source.components.values()
        for name, tensor in spec.tensors.items()
        if name.endswith("pos_embed.pos_embed")
    )
    assert after.format == "onnx" and after.parameters == plan.source.parameters + tables
    own = draw(open_pipeline(tmp_path / "out", device="cpu"))
    original = draw(open_pipeline(family_folder(family), device="cpu"))
    # float32 in another order of summation, through two or three steps: some 1e-6 each, and ten times that to spare.
    assert np.abs(own - original).max() < 1e-4
    stock = stock_onnx_pipeline(tmp_path / "out", plan.source.pipeline_class)
    if stock is not None:
        assert np.abs(draw(stock) - own).max() < 1e-4


def stock_onnx_pipeline(folder: Path, pipeline_class: str) -> Any:
    """The folder as optimum-onnx opens it; None where it is not installed or has no such pipeline."""
    try:
        import optimum.onnxruntime as ort
    except ImportError:
        return None
    if not hasattr(ort, f"ORT{pipeline_class}"):
        return None
    return getattr(ort, f"ORT{pipeline_class}").from_pretrained(folder)


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
def test_in_onnx_with_eight_bits(family: str, family_folder: Folder, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    source = open_source(str(family_folder(family)))
    recipe = (
        "target: onnx\ncomponents: {unet|transformer: [{quantize: {format: int8, activations: int8}}], "
        '"*": [{quantize: {format: int8}}]}'
    )
    _, after = compressed(family_folder(family), recipe + CALIBRATION, tmp_path / "out")
    # A quarter of float32, plus norms, biases and scales, of which so small a pipeline has many.
    assert after.weights_bytes < 0.5 * source.weights_bytes
    # How close the picture comes says nothing here: random networks with every activation rounded, the first and last
    # layers' too, have no error that theory bounds (0.01 to 0.14 were seen).
    picture = draw(open_pipeline(tmp_path / "out", device="cpu"))
    assert np.isfinite(picture).all() and picture.std() > 0.01


@pytest.mark.parametrize("model", catalog.names())
def test_full_size_plans(model: str) -> None:
    """Whatever the recipe, what is planned has the catalog's parameters, and so has the ONNX export."""
    source = open_source(model)
    for name in ("int8", "int4", "nf4", "onnx-int8-transformer", "onnx-fp16"):
        plan = make_plan(load_recipe(name), source)
        assert sum(spec.parameters for spec in plan.components_after.values()) == source.parameters, name
