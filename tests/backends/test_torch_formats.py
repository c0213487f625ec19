"""How codes lie in files, and that what is stored stands for the same weight as what was quantized."""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file
from stored_weights import OWN, format_of, quantized, stored_parts

from sdcompress import open_source
from sdcompress.backends.torch import unpacking
from sdcompress.backends.torch.packaging import packed_specs
from sdcompress.backends.torch.unpacking import at_once, by_chunks, dequantize_stored, logical, pick_rows
from sdcompress.execution.execute import execute
from sdcompress.files.torch_tensors import TORCH_DTYPE
from sdcompress.planning.plan import make_plan
from sdcompress.planning.recipe import parse_recipe
from sdcompress.quant.formats.normal_float import LEVELS
from sdcompress.sources.spec import parameter

SHAPES = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 3), st.integers(1, 3)),
)


@st.composite
def tensors(draw, name):
    """A weight of a shape with odd sizes in the format of that name, its options drawn too."""
    shape = draw(SHAPES)
    fmt = format_of(name)
    label = name
    if name != "int8-unsaturated":
        largest = shape[0] if name.startswith("codebook") else 24
        group = draw(st.none() | st.integers(1, largest))
        label += f"/{group}" if group else ""
    label += "+scale8" if "scale_bits" in fmt.options and draw(st.booleans()) else ""
    label += "+rank2" if "rank" in fmt.options and draw(st.booleans()) else ""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    return quantized(torch.randn(shape, generator=generator), format_of(label))


def slow_weight(tensor):
    """[out, columns] float64: every weight by itself, from what the formats' docstrings say."""
    fmt, rows, columns = tensor.format, tensor.shape[0], math.prod(tensor.shape[1:])
    groups = fmt.layout(tensor.shape).group_of_columns().tolist()
    weight = torch.empty(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            code = int(tensor.codes.flatten(1)[row, column])
            value = float(code)
            if tensor.palette is not None:
                value = float(tensor.palette[row // fmt.group_size if fmt.group_size else 0, code])
            elif fmt.name == "normal-float4":
                value = float(torch.tensor(LEVELS[code]))
            elif tensor.zero_point is not None:
                value = code - int(tensor.zero_point.flatten(1)[row, groups[column]]) / 2 ** (8 - fmt.bits)
            if tensor.scale is not None:
                value *= float(tensor.scale.view(rows, -1)[row, groups[column]])
                value *= 1.0 if tensor.scale_step is None else float(tensor.scale_step[row])
            if tensor.low_rank_up is not None:
                value += float(tensor.low_rank_up[row].double() @ tensor.low_rank_down[:, column].double())
            weight[row, column] = value
    return weight.view(tensor.shape)


@pytest.mark.parametrize("name", OWN)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_stored_weight_is_the_quantized_one(name, data):
    tensor = data.draw(tensors(name))
    parts = stored_parts(tensor)
    specs = packed_specs("layer", tensor.format, parameter(tensor.shape, "F32"), stock=False)
    assert [name.removeprefix("layer.") for name in specs] == list(parts)
    for value, spec in zip(parts.values(), specs.values(), strict=True):
        assert tuple(value.shape) == spec.shape and value.dtype == TORCH_DTYPE[spec.dtype]
        assert value.numel() * value.element_size() == spec.size_bytes
    assert sum(spec.parameters for spec in specs.values()) == math.prod(tensor.shape)

    back = logical(parts, tensor.format, tensor.shape).parts()
    assert all(torch.equal(back[name], part) for name, part in tensor.parts().items())
    slow = slow_weight(tensor)
    weight = dequantize_stored(parts, tensor.format, tensor.shape, torch.float32)
    # Up to five roundings of float32 on the way, each of at most 2^-24 of a value below the largest.
    assert float((weight - slow).abs().max()) <= 5 * 2.0**-24 * (float(slow.abs().max()) + 1)
    for dtype, way in itertools.product((torch.float32, torch.bfloat16, torch.float16), (by_chunks, at_once)):
        fast = way(parts, tensor.format, tensor.shape, dtype)
        plain = logical(parts, tensor.format, tensor.shape).dequantize(dtype)
        assert fast.dtype == dtype and fast.shape == tensor.shape
        if not tensor.format.rank:
            assert torch.equal(fast, plain)
        else:  # the correction is rounded before it is added, or with the sum
            assert torch.allclose(fast, plain, rtol=2 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("label", ["int8", "uint4/7+scale8+rank3", "normal-float4", "codebook4/5", "codebook3"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_chunks_and_pieces_give_the_whole(label, channels_last, monkeypatch):
    tensor = quantized(torch.randn(23, 18, 3, 3, generator=torch.Generator().manual_seed(0)), format_of(label))
    parts = stored_parts(tensor)
    if channels_last and parts["codes"].dim() == 4:
        parts["codes"] = parts["codes"].contiguous(memory_format=torch.channels_last)
    whole = dequantize_stored(parts, tensor.format, tensor.shape, torch.bfloat16)
    monkeypatch.setattr(unpacking, "CHUNK", 500 // torch.get_num_threads())
    assert torch.equal(dequantize_stored(parts, tensor.format, tensor.shape, torch.bfloat16), whole)
    few = slice(3, 14)
    for rows in (few, torch.arange(few.start, few.stop)):
        picked, fmt = pick_rows(parts, tensor.format, rows)
        assert torch.equal(dequantize_stored(picked, fmt, (11, 18, 3, 3), torch.bfloat16), whole[few])


def test_int8_is_stored_as_it_always_was():
    tensor = quantized(torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0)), format_of("int8"))
    parts = stored_parts(tensor)
    assert list(parts) == ["codes", "scale"]
    assert parts["codes"].dtype == torch.int8 and parts["codes"].shape == (4, 6, 3, 3)
    assert parts["scale"].dtype == torch.float16 and parts["scale"].shape == (4,)
    assert parts["codes"].is_contiguous()


def test_packed_codes_of_a_convolution_have_their_channels_last():
    """[out, kh, kw, in]; of 4-bit codes, byte j holds codes j and, above it, j + m (packing.py)."""
    codes = torch.arange(16, dtype=torch.uint8).view(1, 4, 2, 2)
    tensor = quantized(torch.randn(1, 4, 2, 2), format_of("uint4"))
    parts = stored_parts(type(tensor).from_parts({**tensor.parts(), "codes": codes}, tensor.format, tensor.shape))
    ordered = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15]
    assert parts["codes"].tolist() == [[low + 16 * high for low, high in zip(ordered[:8], ordered[8:], strict=True)]]


@pytest.mark.parametrize(
    "options",
    ["format: int4", "format: uint3, group_size: 24, scale_bits: 8", "format: normal-float4, group_size: 64",
     "format: codebook4", "format: int2, rank: 2", "format: int6, hadamard: true", "format: int8"],
)  # fmt: skip
def test_effective_bits_are_bytes_on_disk(options, nano_folder, tmp_path):
    text = f"schema_version: 1\ndescription: T\ncomponents: {{unet: [{{quantize: {{{options}}}}}]}}\n"
    plan = make_plan(parse_recipe(text, "r"), open_source(str(nano_folder)))
    execute(plan, tmp_path / "out")
    spec = plan.components_after["unet"]
    values = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    for name, value in values.items():
        planned = spec.tensors[name]
        assert (tuple(value.shape), value.dtype) == (planned.shape, TORCH_DTYPE[planned.dtype])
    on_disk = sum(value.numel() * value.element_size() for value in values.values())
    assert on_disk == spec.weights_bytes
    assert spec.bits_per_weight == 8 * on_disk / spec.parameters
    assert spec.parameters == plan.source.components["unet"].parameters
