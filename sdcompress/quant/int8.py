"""int8: eight-bit symmetric codes, one scale per output channel, for linear layers, convolutions and embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from sdcompress.quant.layout import Layout
from sdcompress.quant.symmetric import Symmetric


@dataclass(frozen=True)
class Int8(Symmetric):
    """Per output channel (an embedding: per row), or in groups of `group_size` input channels.

    The kernel positions of a convolution share their input channels' scale.
    """

    name = "int8"
    bits = 8
    default_group = None
    targets = frozenset({"torch", "onnx"})
    keeps_sensitive = False

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return Layout(shape, self.group)
