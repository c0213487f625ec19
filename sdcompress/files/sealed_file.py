"""Safetensors files that end with a digest of what they hold, so that a damaged one is known before it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sdcompress.errors import SourceError
from sdcompress.files.cache import replacing
from sdcompress.files.safetensors_file import StreamWriter, TensorRange, read_bytes, read_header

if TYPE_CHECKING:
    import torch

SEAL = "sha256"  # name of the last tensor: [32] U8, of everything before it but the header
_DTYPES = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
_CHUNK_BYTES = 2**22

Spec = tuple[str, tuple[int, ...]]  # dtype, shape


def write_sealed(file: Path, specs: dict[str, Spec], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Writes `tensors`, which come in the order of `specs`, one at a time; the file is there when it is whole."""
    digest = hashlib.sha256()
    with replacing(file) as unfinished, StreamWriter(unfinished, {**specs, SEAL: ("U8", (32,))}, {}) as writer:
        for name, tensor in tensors:
            data = _bytes_of(tensor)
            digest.update(_entry(name, *specs[name]))
            digest.update(data)
            writer.write(name, data)
        writer.write(SEAL, digest.digest())


def read_sealed(file: Path) -> dict[str, TensorRange] | None:
    """Name -> range of the tensors, when the file is there and holds what was written to it; else None."""
    try:
        ranges = read_header(file)
        seal = bytes(read_bytes(ranges.pop(SEAL)))
        digest = hashlib.sha256()
        for name, where in sorted(ranges.items(), key=lambda item: item[1].offset):
            digest.update(_entry(name, where.dtype, where.shape))
            for chunk in read_chunks(where):
                digest.update(chunk)
    except (SourceError, KeyError, OSError):
        return None
    return ranges if digest.digest() == seal else None


def read_chunks(where: TensorRange) -> Iterator[bytes]:
    """The tensor's bytes, a few MB at a time. SourceError where the file ends too soon."""
    with where.file.open("rb", buffering=0) as stream:
        stream.seek(where.offset)
        left = where.size_bytes
        while left:
            chunk = stream.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise SourceError(f"{where.file}: ended while it was read; download or save it again")
            left -= len(chunk)
            yield chunk


def read_tensor(where: TensorRange) -> torch.Tensor:
    """The tensor, in memory of its own."""
    import torch

    from sdcompress.files.torch_dtypes import TORCH_DTYPE

    return torch.frombuffer(read_bytes(where), dtype=TORCH_DTYPE[where.dtype]).view(where.shape)


def spec_of(tensor: torch.Tensor) -> Spec:
    """The tensor's dtype, as safetensors call it, and shape."""
    return _DTYPES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _entry(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    return f"{name} {dtype} {list(shape)}\n".encode()
