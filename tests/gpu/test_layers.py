"""Layers in every format on the device compute what the same weights compute on the CPU in float32."""

from __future__ import annotations

import copy

import pytest
import torch
from stored_weights import FLOAT32, LABELS, LAYERS, format_of, inputs, pair
from torch import nn

from sdcompress.backends.torch.modules import QuantizedLayer, cast_scales
from sdcompress.quant.registry import known_formats

BITSANDBYTES = sorted(name for name, fmt in known_formats().items() if fmt.library == "bitsandbytes")
# Roundings in half precision on the way to an output: step, scale and zero point of a group, the value, two low-rank
# factors, their product and its sum with the value, the rotated input, and the output. Each is of eps / 2 at most.
ROUNDINGS = 10


def on_device(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """A copy on the device, its floating-point tensors in `dtype`, as loading makes it."""
    holder = nn.Sequential(copy.deepcopy(module), nn.LayerNorm(1)).to(device).to(dtype)
    cast_scales(holder)
    return holder[0]


def relative(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float((result.cpu().double() - exact.double()).norm() / exact.double().norm())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("label", [*LABELS, *BITSANDBYTES])
def test_computes_what_the_cpu_computes(label: str, dtype: torch.dtype, device: str) -> None:
    if label in BITSANDBYTES:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (pip install 'sdcompress[bnb]')")
    for layer in LAYERS:
        if layer == "embedding" and layer not in format_of(label).kinds:
            continue
        module, exact = pair(label, layer)
        x = inputs(layer)
        if x.is_floating_point():
            x = x.to(dtype).float()  # the same input for both
        want = exact(x)
        moved = on_device(module, device, dtype)
        given = x.to(device, dtype) if x.is_floating_point() else x.to(device)
        layouts = [given]
        if given.dim() == 4:
            layouts.append(given.contiguous(memory_format=torch.channels_last))
        for one in layouts:
            got = moved(one)
            assert got.dtype == dtype and got.device.type == device
            if dtype == torch.float32:
                assert float((got.cpu() - want).abs().max()) <= FLOAT32, layer
            else:
                assert relative(got, want) <= ROUNDINGS * torch.finfo(dtype).eps / 2, layer


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 40, 333])  # few for cuBLAS' 8-bit kernel, enough, and no multiple of 8
def test_rounded_inputs(tokens: int, dtype: torch.dtype, device: str) -> None:
    """Sums of 8-bit products are exact: what differs are two products with scales and the rounding of the output."""
    module, _ = pair("int8", "linear")
    assert isinstance(module, QuantizedLayer)
    module.rounds_input = True
    x = torch.randn(2, tokens, 48, generator=torch.Generator().manual_seed(2)).to(dtype)
    want = on_device(module, "cpu", torch.float32)(x.float())
    got = on_device(module, device, dtype)(x.to(device))
    assert got.dtype == dtype and got.device.type == device
    # The scales too are rounded to `dtype`: eps / 2, as the output.
    assert relative(got, want) <= 2 * torch.finfo(dtype).eps


@torch.no_grad()
@pytest.mark.parametrize("label", LABELS)
def test_compiles_to_one_graph(label: str, device: str) -> None:
    """In float16, against the same layers without compiling, which round in between."""
    layers = {layer: pair(label, layer)[0] for layer in ("linear", "conv3x3", "embedding")}
    dtype = torch.float16 if device != "cpu" else torch.float32
    model = nn.ModuleDict({layer: on_device(module, device, dtype) for layer, module in layers.items()})

    def run(ids: torch.Tensor, x: torch.Tensor, picture: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return model["embedding"](ids), model["linear"](x), model["conv3x3"](picture)

    given = [inputs("embedding").to(device), inputs("linear").to(device, dtype), inputs("conv3x3").to(device, dtype)]
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    for got, want in zip(compiled(*given), run(*given), strict=True):
        assert relative(got, want.cpu()) <= 2 * ROUNDINGS * torch.finfo(dtype).eps / 2


@torch.no_grad()
@pytest.mark.parametrize("label", ["int8", "uint3/16+scale8", "normal-float4", "codebook4/5"])
def test_there_and_back(label: str, device: str) -> None:
    """Moving loses nothing; casting rounds scales alone."""
    module, _ = pair(label, "conv3x3")
    moved = on_device(module, device, torch.float32)
    assert isinstance(moved, QuantizedLayer) and {value.device.type for value in moved.stored.values()} == {device}
    assert moved.weight.device.type == device
    back = moved.to("cpu")
    assert isinstance(back, QuantizedLayer)
    assert all(torch.equal(value, module.stored[name]) for name, value in back.stored.items())
    half = on_device(module, device, torch.bfloat16)
    assert isinstance(half, QuantizedLayer) and half.compute_dtype == torch.bfloat16
    assert torch.equal(half.stored["codes"].cpu(), module.stored["codes"])
