"""Modules that hold codes compute what the dequantized weights compute, whatever the format, layer and layout."""

import copy
import shutil

import pytest
import torch
from stored_weights import FLOAT32, LABELS, LAYERS, format_of, inputs, pair, quantized_pair
from torch import nn

from sdcompress.backends.torch import modules, unpacking
from sdcompress.backends.torch.modules import QuantizedLayer, cast_scales, replace_layers
from sdcompress.errors import ArtifactError


@pytest.fixture(autouse=True)
def in_small_pieces(monkeypatch):
    """Layers of 3,456 weights in several pieces and chunks, as large ones are."""
    monkeypatch.setattr(unpacking, "CHUNK", 1500)
    monkeypatch.setattr(modules, "PIECE", 1000)
    monkeypatch.setattr(modules, "PIECE_ROWS", 8)


@torch.no_grad()
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("layer", LAYERS)
def test_computes_what_its_weight_computes(label, layer):
    if layer == "embedding" and layer not in format_of(label).kinds:
        pytest.skip(f"{label} is not for embeddings")
    module, exact = pair(label, layer)
    assert torch.allclose(module(inputs(layer)), exact(inputs(layer)), rtol=0, atol=FLOAT32)
    # Rotated back in float32, by sums of up to 16 products.
    assert torch.allclose(module.weight, exact.weight, rtol=0, atol=16 * 8 * 2.0**-24)
    if module.codes.dim() == 4 or layer in ("conv3x3", "conv1x1"):
        last = inputs(layer).contiguous(memory_format=torch.channels_last)
        module = module.to(memory_format=torch.channels_last)
        assert torch.allclose(module(last), exact(last), rtol=0, atol=FLOAT32)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("label", ["int8", "uint4/16+scale8", "normal-float4", "codebook2"])
def test_half_precision(label, dtype):
    module, exact = pair(label, "linear")
    holder = nn.Sequential(module, nn.LayerNorm(72))
    before = {name: value.clone() for name, value in module.stored.items()}
    holder.to(dtype)
    cast_scales(holder)
    for name, value in module.stored.items():
        if before[name].is_floating_point():
            assert value.dtype == dtype
        else:
            assert torch.equal(value, before[name])
    y = module(inputs("linear", dtype))
    assert y.dtype == dtype
    # Relative roundings of inputs, scales, weights and the output: half a unit in the last place each.
    error = float((y.float() - exact(inputs("linear"))).norm() / exact(inputs("linear")).norm())
    assert error < 4 * torch.finfo(dtype).eps / 2


@torch.no_grad()
def test_an_embedding_dequantizes_the_rows_asked_for(monkeypatch):
    module, exact = pair("uint3/16", "embedding")
    shapes = []
    whole = modules.dequantize_stored

    def spy(parts, fmt, shape, dtype):
        shapes.append(shape)
        return whole(parts, fmt, shape, dtype)

    monkeypatch.setattr(modules, "dequantize_stored", spy)
    assert torch.equal(module(torch.tensor([[5, 71, 5]])), exact(torch.tensor([[5, 71, 5]])))
    assert shapes == [(3, 48)]


@torch.no_grad()
def test_weights_are_dequantized_in_pieces(monkeypatch):
    module, _ = pair("int4", "conv3x3")
    sizes = [weight.shape[0] for weight, _ in module.pieces(torch.float32)]
    # 31,104 weights in at least 32 pieces of 1,000, but of whole blocks of 8 output channels.
    assert sizes == [8] * 9
    assert [weight.shape[0] for weight, _ in pair("int4", "grouped")[0].pieces(torch.float32, groups=2)] == [72]


def test_a_module_is_of_the_kind_it_stands_for():
    """PEFT, diffusers and transformers ask `isinstance` and read these."""
    linear, conv, table = (pair("int4", layer)[0] for layer in ("linear", "conv3x3", "embedding"))
    assert isinstance(linear, nn.Linear) and (linear.in_features, linear.out_features) == (48, 72)
    assert isinstance(conv, nn.Conv2d) and (conv.in_channels, conv.out_channels) == (48, 72)
    assert (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (2, 2), (1, 1), (1, 1))
    assert isinstance(table, nn.Embedding) and (table.num_embeddings, table.embedding_dim) == (72, 48)
    for module in (linear, conv, table):
        assert isinstance(module, QuantizedLayer)
        assert set(module.state_dict()) - {"bias"} == {"codes", "scale"}
        assert "int4" in repr(module)


class ScaledEmbedding(nn.Embedding):
    """Gemma's embedding as transformers 5 has it."""

    scalar_embed_scale = 3.7

    def forward(self, ids):
        return super().forward(ids) * self.scalar_embed_scale


@torch.no_grad()
def test_a_scaled_embedding_stays_scaled():
    module, exact = quantized_pair(ScaledEmbedding(72, 48), "int4")
    # One product with the factor, which is rounded to float32 first: two roundings of values below 32.
    assert torch.allclose(module(inputs("embedding")), exact(inputs("embedding")), rtol=0, atol=2 * 32 * 2.0**-24)


def test_an_embedding_that_computes_something_else_is_refused():
    class Shifted(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) + 1

    with pytest.raises(ArtifactError, match="Shifted"):
        replace_layers(nn.Sequential(Shifted(72, 48)), {"0": format_of("int4")})


def test_a_plain_convolution_by_the_class_of_a_quantized_one():
    """As PEFT makes a LoRA's: `type(layer)(in_channels, rank, kernel_size, bias=False)`."""
    module, _ = pair("int4", "conv3x3")
    plain = type(module)(48, 2, (3, 3), bias=False)
    assert type(plain) is nn.Conv2d and plain.weight.shape == (2, 48, 3, 3)
    assert torch.equal(copy.deepcopy(module).codes, module.codes)


def test_a_computed_weight_cannot_be_written():
    """What PEFT's merging does: `layer.weight.data += delta`, which would be lost."""
    module, _ = pair("int8", "linear")
    with pytest.raises(ArtifactError, match="keep the LoRA as an adapter"):
        module.weight.data += 1
    assert type(module.weight + 1) is torch.Tensor and module.weight.data.shape == (72, 48)


def test_padding_other_than_zeros_is_refused():
    with pytest.raises(ArtifactError, match="padding_mode reflect"):
        replace_layers(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), {"0": format_of("int8")})


@torch.no_grad()
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_compiled_layers(backend):
    """One graph, no breaks; every way of turning codes into weights."""
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    labels = ["int8", "uint3/16+scale8", "normal-float4+rank2", "codebook4/5+hadamard", "int5+hadamard"]
    layers = [quantized_pair(nn.Linear(48, 48), label)[0] for label in labels]
    conv, _ = quantized_pair(nn.Conv2d(4, 8, 3), "uint4/3+scale8")
    model = nn.Sequential(*layers, nn.Unflatten(1, (4, 12)), nn.Flatten(2), nn.Unflatten(2, (4, 3)), conv)
    x = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    want = model(x)
    assert torch.allclose(compiled(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
