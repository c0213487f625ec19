"""Tensors of a source, read one at a time; torch is imported when the first is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sdcompress.files.safetensors_file import TensorRange, read_bytes
from sdcompress.sources.source import Source
from sdcompress.sources.spec import TensorSpec

if TYPE_CHECKING:
    import torch


def reader_of(source: Source, component: str) -> Callable[[str], torch.Tensor]:
    """The reader of the component's tensors by name: as they are stored, or as the source has them computed."""
    if component in source.readers:
        return source.readers[component]
    ranges = source.tensors[component]
    return lambda tensor: to_tensor(read_bytes(ranges[tensor]), ranges[tensor])


def to_tensor(data: bytearray, spec: TensorRange | TensorSpec) -> torch.Tensor:
    """A safetensors tensor's bytes as a torch tensor that shares them."""
    import torch

    from sdcompress.files.torch_dtypes import TORCH_DTYPE

    dtype = TORCH_DTYPE[spec.dtype]
    if not data:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).view(spec.shape)
