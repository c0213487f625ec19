"""Tensors of safetensors files as torch tensors."""

from __future__ import annotations

import torch

from sdcompress.files.safetensors_file import TensorRange, read_bytes

TORCH_DTYPE = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip
NAME_OF_DTYPE = {dtype: name for name, dtype in TORCH_DTYPE.items()}


def read_tensor(where: TensorRange) -> torch.Tensor:
    """Return the tensor of a file, in memory of its own.

    Raises:
        SourceError: the file is shorter than when its header was read.
    """
    dtype = TORCH_DTYPE[where.dtype]
    if not where.size_bytes:
        return torch.empty(where.shape, dtype=dtype)
    return torch.frombuffer(read_bytes(where), dtype=dtype).view(where.shape)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the tensor's values as the bytes that a safetensors file holds. They are shared where they can be."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
