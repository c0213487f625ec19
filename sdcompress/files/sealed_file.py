"""Safetensors files that end with a digest of their content, so that a damaged file is recognised before it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from sdcompress.errors import SourceError
from sdcompress.files.cache import replacing
from sdcompress.files.safetensors_file import StreamWriter, TensorRange, read_bytes, read_header
from sdcompress.files.torch_tensors import NAME_OF_DTYPE, tensor_bytes

SEAL = "sha256"  # name of the last tensor: U8 of shape [32]
_CHUNK_BYTES = 2**22

Spec = tuple[str, tuple[int, ...]]  # safetensors' name of the dtype, shape


def write_sealed(file: Path, specs: dict[str, Spec], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write `tensors` to `file` one at a time. The file appears when all of it is written.

    Args:
        specs: name -> dtype and shape of every tensor.
        tensors: name and tensor, in the order of `specs`.
    """
    digest = hashlib.sha256()
    with replacing(file) as unfinished, StreamWriter(unfinished, {**specs, SEAL: ("U8", (32,))}, {}) as writer:
        for name, tensor in tensors:
            data = tensor_bytes(tensor)
            digest.update(_entry(name, *specs[name]))
            digest.update(data)
            writer.write(name, data)
        writer.write(SEAL, digest.digest())


def read_sealed(file: Path) -> dict[str, TensorRange] | None:
    """Return name -> range of the tensors; None if there is no such file or its content does not fit its digest."""
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
    """Yield the tensor's bytes in chunks of at most 4 MiB.

    Raises:
        SourceError: the file ends before the tensor does.
    """
    with where.file.open("rb", buffering=0) as stream:
        stream.seek(where.offset)
        left = where.size_bytes
        while left:
            chunk = stream.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise SourceError(f"{where.file}: ended while it was read; download or save it again")
            left -= len(chunk)
            yield chunk


def spec_of(tensor: torch.Tensor) -> Spec:
    """Return the tensor's dtype, by safetensors' name, and its shape."""
    return NAME_OF_DTYPE[tensor.dtype], tuple(tensor.shape)


def _entry(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    return f"{name} {dtype} {list(shape)}\n".encode()
