"""Quantized weights and modules for the tests of the torch backend: random, small, in every format."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import nn

from sdcompress.backends.torch.modules import replace_layers
from sdcompress.backends.torch.packaging import package
from sdcompress.quant.compose import restored
from sdcompress.quant.registry import from_label, known_formats
from sdcompress.sources.spec import parameter

OWN = sorted(name for name, fmt in known_formats().items() if fmt.library == "sdcompress")

# Every kind of codes, scales and corrections, with groups that divide the channels of LAYERS and that do not.
LABELS = [
    *OWN, "int8/16", "int4/64+scale8", "uint4/20", "uint3/16+scale8", "normal-float4/64+scale8", "codebook4/5",
    "codebook3/7", "int4+rank4", "uint4/16+scale8+rank4+hadamard", "int8+hadamard", "codebook4+rank4+hadamard",
]  # fmt: skip
LAYERS = {
    "linear": lambda: nn.Linear(48, 72),
    "conv3x3": lambda: nn.Conv2d(48, 72, 3, padding=1, stride=2),
    "conv1x1": lambda: nn.Conv2d(48, 72, 1, bias=False),
    "grouped": lambda: nn.Conv2d(48, 72, 3, groups=2, dilation=2),
    "embedding": lambda: nn.Embedding(72, 48),
}
# Sums of 432 products below 8, in another order: at worst as many roundings of 2^-24 of a sum below 64.
FLOAT32 = 432 * 64 * 2.0**-24


def format_of(label):
    return from_label(label)


def quantized(weight, fmt, seed=0):
    """The weight rounded to nearest; a low-rank part is random, which is all that matters to how it is stored."""
    tensor = replace(replace(fmt, rank=0, hadamard=False).quantize(weight), format=fmt)
    if not fmt.rank:
        return tensor
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(weight.shape[0], fmt.rank, generator=generator) * 0.1
    down = torch.randn(fmt.rank, math.prod(weight.shape[1:]), generator=generator) * 0.1
    return replace(tensor, low_rank_up=up.half(), low_rank_down=down.half())


def stored_parts(tensor):
    """Part -> tensor as the file has it."""
    stored = package(tensor, "layer", parameter(tensor.shape, "F32"), stock=False)
    return {name.removeprefix("layer."): value for name, value in stored.items()}


def quantized_pair(original, label):
    """The module that holds a layer in a format, and the same layer with the weight that the format stands for."""
    fmt = format_of(label)
    tensor = quantized(original.weight.detach(), fmt)
    exact = copy.deepcopy(original)
    exact.weight = nn.Parameter(restored(tensor, torch.float32))
    holder = nn.Sequential(original)
    replace_layers(holder, {"0": fmt})
    module = holder[0]
    for name, value in stored_parts(tensor).items():
        setattr(module, name, value.float() if value.is_floating_point() else value)  # as cast_scales does
    return module, exact


def pair(label, layer):
    """The quantized module and the exact layer, of one of LAYERS in one of LABELS."""
    torch.manual_seed(0)
    return quantized_pair(LAYERS[layer](), label)


def inputs(layer, dtype=torch.float32):
    """What one of LAYERS is given."""
    generator = torch.Generator().manual_seed(1)
    if layer == "embedding":
        return torch.randint(0, 72, (2, 9), generator=generator)
    return torch.randn((2, 5, 48) if layer == "linear" else (2, 48, 9, 7), generator=generator).to(dtype)
