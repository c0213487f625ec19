"""Modules that hold a weight as codes and dequantize it, one layer at a time, when they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sdcompress.backends.torch.dtypes import TORCH_DTYPE
from sdcompress.backends.torch.names import living_name
from sdcompress.errors import ArtifactError
from sdcompress.quant.format import QuantFormat, QuantizedTensor
from sdcompress.spec import TensorSpec, parameter


class QuantizedLayer(nn.Module):
    """A layer whose weight is `codes` and `scale`; `weight` dequantizes it in the scale's dtype."""

    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, original: nn.Module, fmt: QuantFormat):
        super().__init__()
        weight = original.weight
        assert isinstance(weight, torch.Tensor)
        self.format = fmt
        self.shape = tuple(weight.shape)
        device = weight.device if weight.device.type == "meta" else torch.device("cpu")
        for name, spec in fmt.stored(parameter(self.shape, "F32")).items():
            self.register_buffer(name, _empty(spec, device))
        bias = getattr(original, "bias", None)
        self.bias = bias if isinstance(bias, nn.Parameter) else None

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        return QuantizedTensor(self.codes, self.scale, self.format, self.shape).dequantize(dtype)

    @property
    def weight(self) -> torch.Tensor:
        return self.dequantized(self.scale.dtype)

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, format={self.format.label}"


class QuantizedLinear(QuantizedLayer):
    """y = x W^T + b."""

    def __init__(self, original: nn.Linear, fmt: QuantFormat):
        super().__init__(original, fmt)
        self.in_features, self.out_features = original.in_features, original.out_features

    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return F.linear(x, self.dequantized(x.dtype), self.bias)


class QuantizedConv2d(QuantizedLayer):
    """A two-dimensional convolution with the original's stride, padding, dilation and groups."""

    def __init__(self, original: nn.Conv2d, fmt: QuantFormat):
        super().__init__(original, fmt)
        if original.padding_mode != "zeros":
            raise ArtifactError(f"convolutions with padding_mode {original.padding_mode} are not supported")
        self.in_channels, self.out_channels = original.in_channels, original.out_channels
        self.kernel_size, self.stride = original.kernel_size, original.stride
        self.padding, self.dilation, self.groups = original.padding, original.dilation, original.groups

    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        weight = self.dequantized(x.dtype)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class QuantizedEmbedding(QuantizedLayer):
    """Rows of a table; only the rows asked for are dequantized."""

    def __init__(self, original: nn.Embedding, fmt: QuantFormat):
        super().__init__(original, fmt)
        self.num_embeddings, self.embedding_dim = original.num_embeddings, original.embedding_dim

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = ids.reshape(-1)
        picked = (rows.numel(), self.embedding_dim)
        tensor = QuantizedTensor(self.codes[rows], self.scale[rows], self.format, picked)
        return tensor.dequantize(self.scale.dtype).view(*ids.shape, self.embedding_dim)


def replace_layers(model: nn.Module, formats: Mapping[str, QuantFormat]) -> None:
    """Puts a quantized module in the place of every layer named; ArtifactError when the model has no such layer."""
    for name, fmt in formats.items():
        living = living_name(model, name)
        if living is None:
            raise ArtifactError(f"{type(model).__name__} has no layer {name}, which its config lists")
        set_layer(model, living, _quantized(model.get_submodule(living), fmt, name))


def set_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts `layer` in the place of the model's module `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def cast_scales(model: nn.Module) -> None:
    """Brings every scale to the model's floating-point type, as loaders do with weights (not all do with buffers)."""
    dtype = next(tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.scale = module.scale.to(dtype)


def _quantized(original: nn.Module, fmt: QuantFormat, name: str) -> QuantizedLayer:
    if isinstance(original, nn.Linear):
        return QuantizedLinear(original, fmt)
    if isinstance(original, nn.Conv2d):
        return QuantizedConv2d(original, fmt)
    if isinstance(original, nn.Embedding):
        return QuantizedEmbedding(original, fmt)
    raise ArtifactError(f"{name} is a {type(original).__name__}, which {fmt.label} has no module for")


def _empty(spec: TensorSpec, device: torch.device) -> torch.Tensor:
    return torch.empty(spec.shape, dtype=TORCH_DTYPE[spec.dtype], device=device)
