"""Safetensors files without torch: reading headers and ranges of bytes, and writing tensor by tensor.

The format (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON header
`{name: {dtype, shape, data_offsets}}`, then the raw little-endian data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

from sdcompress.errors import InternalError, SourceError

DTYPE_BYTES: dict[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
# How the bytes of a file become those of the tensor: they are; a matrix is transposed; the two halves of the first axis
# are swapped. Checkpoints in the original layouts need the last two (sdcompress/sources/single_file).
Arrangement = Literal["plain", "transposed", "halves_swapped"]


@dataclass(frozen=True)
class TensorRange:
    """Where a tensor is stored: `size_bytes` bytes of `file`, starting at byte `offset`.

    Attributes:
        dtype: safetensors' name, such as `F16`.
        shape: shape of the tensor after its bytes are arranged.
        arrangement: how the stored bytes are turned into the tensor's.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int
    arrangement: Arrangement = "plain"


def read_header(file: Path) -> dict[str, TensorRange]:
    """Return name -> range of every tensor of `file`.

    Raises:
        SourceError: the file cannot be read, is truncated, or is no safetensors file.
    """
    header, data_start, total_bytes = _read_json(file)
    return ranges_of_header(file, header, data_start, total_bytes)


def read_metadata(file: Path) -> dict[str, str]:
    """Return the texts under `__metadata__` in the header of `file`, by name. Raises SourceError as `read_header`."""
    metadata = _read_json(file)[0].get("__metadata__")
    return {str(name): str(value) for name, value in metadata.items()} if isinstance(metadata, dict) else {}


def _read_json(file: Path) -> tuple[dict[str, object], int, int]:
    """Return the header as JSON, the offset in bytes at which the data starts, and the file's size in bytes."""
    try:
        total_bytes = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > min(MAX_HEADER_BYTES, total_bytes - 8):
                raise _corrupt(file, "its header is longer than the file, so it is truncated or no safetensors file")
            header = json.loads(stream.read(length))
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise _corrupt(file, "its header is not valid JSON") from None
    except OSError as error:
        raise SourceError(f"{file}: cannot be read ({error.strerror})") from None
    if not isinstance(header, dict):
        raise _corrupt(file, "its header is not a JSON object")
    return header, 8 + length, total_bytes


def ranges_of_header(
    file: Path, header: Mapping[str, object], data_start: int, total_bytes: int | None
) -> dict[str, TensorRange]:
    """Return name -> range of the tensors in a header.

    Args:
        file: the file, for errors and the ranges.
        header: the JSON object.
        data_start: offset in bytes at which the data starts.
        total_bytes: size of the file; None if it is not known.

    Raises:
        SourceError: an entry is malformed, has a dtype that is not supported, or does not fit the file.
    """
    ranges = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])  # type: ignore[index]
            begin, end = (int(n) for n in entry["data_offsets"])  # type: ignore[index]
        except (TypeError, KeyError, ValueError):
            raise _corrupt(file, f"the header's entry for {name} is malformed") from None
        if any(n < 0 for n in shape):
            raise _corrupt(file, f"the header's entry for {name} is malformed")
        if dtype not in DTYPE_BYTES:
            raise SourceError(f"{file}: tensor {name} has dtype {dtype}, which is not supported")
        if end - begin != math.prod(shape) * DTYPE_BYTES[dtype] or begin < 0:
            raise _corrupt(file, f"tensor {name} of shape {list(shape)} {dtype} does not fit its {end - begin} bytes")
        if total_bytes is not None and data_start + end > total_bytes:
            missing = data_start + end - total_bytes
            raise _corrupt(file, f"tensor {name} ends {missing:,} bytes past the end of the file, which is truncated")
        ranges[name] = TensorRange(file, dtype, shape, data_start + begin, end - begin)
    return ranges


def read_bytes(where: TensorRange) -> bytearray:
    """Return the tensor's raw bytes.

    The file is read, not mapped into memory, so that the memory of the process does not grow by what was read before.

    Raises:
        SourceError: the file ends before the tensor does.
    """
    data = bytearray(where.size_bytes)
    with where.file.open("rb", buffering=0) as stream:
        stream.seek(where.offset)
        view = memoryview(data)
        while view:
            count = stream.readinto(view)
            if not count:
                raise _corrupt(where.file, "it ended while it was read")
            view = view[count:]
    return data if where.arrangement == "plain" else _arranged(data, where)


def _arranged(data: bytearray, where: TensorRange) -> bytearray:
    if where.arrangement == "halves_swapped":
        half = len(data) // 2
        return data[half:] + data[:half]
    import numpy as np

    rows, columns = where.shape
    stored = np.frombuffer(data, dtype=f"V{DTYPE_BYTES[where.dtype]}").reshape(columns, rows)
    return bytearray(np.ascontiguousarray(stored.T).tobytes())


class StreamWriter:
    """A context in which one safetensors file is written tensor by tensor.

    Args:
        file: the file to write.
        tensors: name -> dtype and shape of every tensor, in the order in which they are written.
        metadata: texts for the header.

    Raises:
        InternalError: the context ends before all tensors are written.
    """

    def __init__(self, file: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]):
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        self._pending: list[tuple[str, int]] = []
        offset = 0
        for name, (dtype, shape) in tensors.items():
            size = math.prod(shape) * DTYPE_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            self._pending.append((name, size))
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # align the data to 8 bytes, as the reference implementation does
        self._pending.reverse()
        self.file = file
        self._stream: BinaryIO = file.open("wb")
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write the bytes of the next tensor. Raises InternalError if it is not the next or has another size."""
        if not self._pending or self._pending[-1] != (name, memoryview(data).nbytes):
            due = self._pending[-1] if self._pending else None
            raise InternalError(f"{self.file}: {name} ({memoryview(data).nbytes} bytes) written where {due} was due")
        self._pending.pop()
        self._stream.write(data)

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._stream.flush()
                os.fsync(self._stream.fileno())
        finally:
            self._stream.close()
        if kind is None and self._pending:
            raise InternalError(f"{self.file}: {len(self._pending)} tensors were never written")


def _corrupt(file: Path, why: str) -> SourceError:
    return SourceError(f"{file}: {why}; download or save the file again")
