"""The quantize step: which layers get what, what applying it records, and what calibration changes."""

from __future__ import annotations

import math

import pytest
import torch

from sdcompress.backends.component import Component, StepResults
from sdcompress.errors import UserError
from sdcompress.planning.steps import Planned
from sdcompress.planning.steps.quantize import Quantize
from sdcompress.quant.statistics import LayerStatistics
from sdcompress.sources.spec import ComponentSpec, parameter

SHAPES = {
    "conv_in.weight": (16, 4, 3, 3),
    "conv_in.bias": (16,),
    "mid_block.linear.weight": (24, 16),
    "mid_block.linear.bias": (24,),
    "mid_block.plain.weight": (24, 16),
    "mid_block.norm.weight": (16,),
}


def random_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def unet(class_name: str = "UNet2DConditionModel") -> ComponentSpec:
    tensors = {name: parameter(shape, "F32") for name, shape in SHAPES.items()}
    return ComponentSpec("unet", "diffusers", class_name, {}, tensors)


def statistics_of(columns: int) -> LayerStatistics:
    rows = torch.randn(200, columns, generator=torch.Generator().manual_seed(columns)) + 0.5
    return LayerStatistics(200, rows.mean(0), (rows.T @ rows / 200,))


def applied(step: Quantize, **statistics: LayerStatistics) -> tuple[Planned, dict[str, torch.Tensor], StepResults]:
    planned, tensors = step.plan(unet(), "torch"), random_tensors()
    named = {name.replace("__", "."): value for name, value in statistics.items()}
    part = step.apply(Component(unet(), tensors.__getitem__, named), planned)
    return planned, {name: part.read(name) for name in part.spec.tensors}, part.results


def test_what_is_read_has_the_planned_specs() -> None:
    step = Quantize(format="uint3", group_size=8, scale_bits=8, rank=2, keep_sensitive=False)
    planned, read, _ = applied(step)
    names = {torch.uint8: "U8", torch.float16: "F16", torch.float32: "F32"}
    assert {name: (tuple(value.shape), names[value.dtype]) for name, value in read.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in planned.spec.tensors.items()
    }


def test_results_say_how_and_how_well() -> None:
    step = Quantize(
        format="int4", group_size=16, rounding="search", overrides=({"layers": ["conv_in"], "format": "int8"},)
    )
    _, _, results = applied(step)
    assert results.layers["conv_in"]["format"] == "int8" and results.layers["conv_in"]["rounding"] == "search"
    linear = results.layers["mid_block.linear"]
    assert linear["bits_per_weight"] == 4 + 16 / 16  # one float16 scale in a group of 16 weights
    assert "output_sqnr_db" not in linear
    # Uniform rounding of a normal distribution in 16 steps over the range of 16 values: between 15 and 25 dB.
    assert 15 < linear["weight_sqnr_db"] < 25


def test_calibrated_layers_tell_the_error_of_their_output() -> None:
    step = Quantize(format="uint2", group_size=16, rounding="gptq", keep_sensitive=False)
    statistics = {
        "conv_in": statistics_of(36),
        "mid_block__linear": statistics_of(16),
        "mid_block__plain": statistics_of(16),
    }
    planned, _, record = applied(step, **statistics)
    assert planned.calibrated == ("conv_in", "mid_block.linear", "mid_block.plain")
    assert all(math.isfinite(entry["output_sqnr_db"]) for entry in record.layers.values())


def test_bias_correction_shifts_by_the_mean_error_of_the_output() -> None:
    """b + (W - W') E[x], so that the mean output is what it was; layers without a bias stay without."""
    step = Quantize(format="int2", rounding="search", bias_correction=True, keep_sensitive=False)
    statistics = {"conv_in": statistics_of(36), "mid_block__linear": statistics_of(16)}
    planned, read, _ = applied(step, **statistics)
    assert planned.calibrated == ("conv_in", "mid_block.linear")
    plain = Quantize(format="int2", rounding="search", keep_sensitive=False)
    _, before, _ = applied(plain)
    tensors = random_tensors()
    codes = read["mid_block.linear.codes"]
    assert torch.equal(codes, before["mid_block.linear.codes"])
    shift = read["mid_block.linear.bias"] - tensors["mid_block.linear.bias"]
    # 16 columns make one group of at most 32, so that a row has one scale; 2-bit codes lie in planes of four.
    quarters = [(codes >> shift_by) & 3 for shift_by in (0, 2, 4, 6)]
    close = (torch.cat(quarters, dim=1).float() - 2) * read["mid_block.linear.scale"].float()
    wanted = (tensors["mid_block.linear.weight"] - close) @ statistics["mid_block__linear"].mean
    assert torch.allclose(shift, wanted, atol=1e-5)  # sums of 16 products of float32


def test_read_in_any_order() -> None:
    """A bias may stand in the file before the weight that corrects it, and after the next layer was begun."""
    step = Quantize(format="int4", rounding="gptq", bias_correction=True, keep_sensitive=False)
    statistics = {
        "conv_in": statistics_of(36),
        "mid_block.linear": statistics_of(16),
        "mid_block.plain": statistics_of(16),
    }
    planned = step.plan(unet(), "torch")

    def part() -> Component:
        return step.apply(Component(unet(), random_tensors().__getitem__, statistics), planned)

    names = sorted(planned.spec.tensors)
    forwards, backwards = part(), part()
    first = {name: forwards.read(name) for name in names}
    second = {name: backwards.read(name) for name in reversed(names)}
    assert all(torch.equal(first[name], second[name]) for name in names)


def test_broken_weights_are_named() -> None:
    step, tensors = Quantize(format="uint4", keep_sensitive=False), random_tensors()
    tensors["mid_block.plain.weight"][3, 5] = math.nan
    planned = step.plan(unet(), "torch")
    part = step.apply(Component(unet(), tensors.__getitem__), planned)
    with pytest.raises(UserError, match=r"unet\.mid_block\.plain\.weight: 1 of 384 values are NaN or infinite"):
        part.read("mid_block.plain.codes")


def test_what_cannot_be_calibrated() -> None:
    for step, field in (
        (Quantize(format="uint4", rounding="gptq"), "rounding"),
        (Quantize(format="uint4", bias_correction=True), "bias_correction"),
    ):
        with pytest.raises(UserError, match=f"^{field}: nothing can be calibrated for unet"):
            step.plan(unet("UVit2DModel"), "torch")


def test_overrides_keep_the_rounding_unless_theirs_allows_none() -> None:
    step = Quantize(
        format="uint4",
        rounding="search",
        keep_sensitive=False,
        overrides=(
            {"layers": ["conv_in"], "format": "int8-unsaturated"},
            {"layers": ["mid_block.plain"], "format": "int2", "rounding": "nearest"},
        ),
    )
    methods = {one.layer: (one.format, one.rounding) for one in step.plan(unet(), "torch").layers if one.format}
    assert methods == {
        "conv_in": ("int8-unsaturated", "nearest"),
        "mid_block.linear": ("uint4", "search"),
        "mid_block.plain": ("int2", "nearest"),
    }


def test_plan_says_where_sums_may_overflow() -> None:
    """With 8-bit activations in ONNX, unless the codes keep within 16 bits."""

    def notes(**options: object) -> int:
        return len(Quantize(format="int8", **options).plan(unet(), "onnx").notes)

    spared = {"layers": ["*"], "format": "int8-unsaturated"}
    assert notes() == 0 and notes(activations="int8", overrides=(spared,)) == 1
    assert notes(activations="int8") == notes(activations="int8", overrides=({**spared, "layers": ["conv_in"]},)) == 2
