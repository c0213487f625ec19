"""int8: eight-bit symmetric codes, one scale per output channel, for linear layers, convolutions and embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdcompress.quant import integer
from sdcompress.quant.format import QuantFormat, QuantizedTensor
from sdcompress.spec import CONVOLUTIONS, Layer, TensorSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Int8(QuantFormat):
    """Per output channel (an embedding: per row), or in groups of `group_size` input channels."""

    name = "int8"
    bits = 8
    kinds = frozenset({"linear", "embedding"}) | CONVOLUTIONS
    targets = frozenset({"torch", "onnx"})
    keeps_sensitive = False

    def problem(self, layer: Layer) -> str | None:
        return integer.group_problem(layer.shape, self.group_size, layer.name)

    def stored(self, weight: TensorSpec) -> dict[str, TensorSpec]:
        return {
            "codes": TensorSpec(weight.shape, "I8", weight.parameters),
            "scale": TensorSpec(integer.scale_shape(weight.shape, self.group_size), "F16", 0),
        }

    def quantize(self, weight: torch.Tensor) -> QuantizedTensor:
        return integer.round_to_nearest(weight, self)

    def dequantize(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        return integer.dequantize(tensor.codes, tensor.scale, dtype)
