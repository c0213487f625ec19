"""What every format promises: it stores what it plans, refuses what it cannot store, and changes nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from random_weights import random

from sdcompress.quant.registry import from_label, known_formats
from sdcompress.sources.spec import parameter

LABELS = [
    *known_formats(),
    *(f"{name}+scale8" for name, fmt in known_formats().items() if "scale_bits" in fmt.options),
    *("int8/4", "int4/16", "uint3/5", "normal-float4/8+scale8", "codebook4/3", "nf4/128"),
]
SHAPES = [(6, 64), (3, 40), (4, 35, 3, 3)]  # 40 and 35 channels end in a smaller group
DTYPES = {torch.int8: "I8", torch.uint8: "U8", torch.float16: "F16", torch.float32: "F32"}


@pytest.fixture(params=LABELS)
def label(request: pytest.FixtureRequest) -> str:
    if from_label(request.param).library == "bitsandbytes":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install 'sdcompress[bnb]')")
    return str(request.param)


def test_it_stores_what_it_plans(label: str) -> None:
    fmt = from_label(label)
    assert fmt.label == label
    for shape in SHAPES:
        weight = random(*shape).half()
        parts, specs = fmt.quantize(weight).parts(), fmt.stored(parameter(shape, "F16"))
        assert list(parts) == list(specs)
        assert {name: tuple(part.shape) for name, part in parts.items()} == {n: spec.shape for n, spec in specs.items()}
        assert {name: spec.parameters for name, spec in specs.items() if spec.parameters} == {"codes": weight.numel()}
        codes_bytes = weight.numel() * fmt.bits / 8
        assert codes_bytes <= specs.pop("codes").size_bytes < codes_bytes + 1  # packed; in memory a byte each
        assert all(DTYPES[parts[name].dtype] == spec.dtype for name, spec in specs.items())


def test_it_refuses_what_no_code_can_stand_for(label: str) -> None:
    for value in (math.nan, math.inf, -math.inf):
        weight = torch.ones(2, 64, 1, 1)
        weight[1, 2] = value
        with pytest.raises(ValueError, match="1 of 128 values are NaN or infinite"):
            from_label(label).quantize(weight)


def test_the_same_bytes_come_out_in_pieces_and_the_weight_stays(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random(64, 9, 3, 3)
    copy, whole = weight.clone(), from_label(label).quantize(weight)
    assert torch.equal(weight, copy)
    monkeypatch.setattr("sdcompress.quant.grid_format.PIECE", 500)
    monkeypatch.setattr("sdcompress.quant.formats.bitsandbytes.CHUNK", 1024)
    pieces = from_label(label).quantize(weight).parts()
    assert all(torch.equal(part, pieces[name]) for name, part in whole.parts().items())


def test_zeros_stay_zero(label: str) -> None:
    tensor = from_label(label).quantize(torch.zeros(4, 35, 3, 3))
    # With a zero point, to within half of the smallest step that float16 can store.
    most = 0 if tensor.zero_point is None else 2.0**-25
    assert float(tensor.dequantize(torch.float32).abs().max()) <= most


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale_bits", [8, 16])
@pytest.mark.parametrize("name", ["int2", "int3", "int4", "int5", "int6", "uint2", "uint3", "uint4", "uint8"])
def test_bytes_by_hand(name: str, scale_bits: int, shape: tuple[int, ...]) -> None:
    fmt = from_label(f"{name}/16" + ("+scale8" if scale_bits == 8 else ""))
    groups = shape[0] * -(-shape[1] // 16) * math.prod(shape[2:])  # each kernel position has its own
    of_group = scale_bits // 8 + (1 if name.startswith("u") else 0)  # and a zero point
    steps = 2 * shape[0] if scale_bits == 8 else 0
    expected = -(-math.prod(shape) * fmt.bits // 8) + groups * of_group + steps
    assert sum(spec.size_bytes for spec in fmt.stored(parameter(shape, "F32")).values()) == expected
