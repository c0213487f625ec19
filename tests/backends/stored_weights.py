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
