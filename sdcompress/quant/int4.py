"""int4: four-bit symmetric codes in blocks of input channels, for linear layers and convolutions.

Blocked round-to-nearest as in ONNX's blocked DequantizeLinear (opset 21): each block of `group_size` input channels of
an output channel has a scale, in a convolution each kernel position on its own: scale [out, in / group, kh, kw].
q = clamp(round(w / s), -7, 7), s = max|w| / 7 rounded up to float16 (see `integer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.quant import integer
from sdcompress.quant.format import QuantFormat, QuantizedTensor
from sdcompress.spec import CONVOLUTIONS, Layer, TensorSpec

if TYPE_CHECKING:
    import torch

DEFAULT_GROUP = 32


@dataclass(frozen=True)
class Int4(QuantFormat):
    """Blocks of `group_size` input channels (32 unless given), per kernel position."""

    name = "int4"
    bits = 4
    kinds = frozenset({"linear"}) | CONVOLUTIONS
    targets = frozenset({"onnx"})
    keeps_sensitive = True
    alternative = "nf4"

    @property
    def group(self) -> int:
        """Input channels that share a scale."""
        return self.group_size or DEFAULT_GROUP

    def problem(self, layer: Layer) -> str | None:
        if self.group & (self.group - 1) or self.group < 16:
            return f"{self.group} is no power of two from 16 on, as ONNX Runtime's kernels need"
        return integer.group_problem(layer.shape, self.group, layer.name)

    def stored(self, weight: TensorSpec) -> dict[str, TensorSpec]:
        out_channels, in_channels, *kernel = weight.shape
        return {
            "codes": TensorSpec(weight.shape, "I4", weight.parameters),
            "scale": TensorSpec((out_channels, in_channels // self.group, *kernel), "F16", 0),
        }

    def quantize(self, weight: torch.Tensor) -> QuantizedTensor:
        flat = integer.round_to_nearest(_channels_last(weight), Int4(self.group))
        shape = tuple(weight.shape)
        blocks = flat.scale.view(shape[0], *shape[2:], shape[1] // self.group)
        codes = flat.codes.view(shape[0], *shape[2:], shape[1])
        return QuantizedTensor(_channels_first(codes), _channels_first(blocks), self, shape)

    def dequantize(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        scale = tensor.scale.to(dtype).repeat_interleave(self.group, dim=1)
        return tensor.codes.to(dtype) * scale


def _channels_last(weight: torch.Tensor) -> torch.Tensor:
    """[out, in, kh, kw] as [out, kh*kw*in]: a kernel position's input channels side by side."""
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _channels_first(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dim() == 2 else tensor.permute(0, 3, 1, 2).contiguous()
