"""Pickled weights (`.bin`, `.ckpt`, `.pt`) as ranges of bytes, found by an unpickler that runs no code.

torch's weights_only unpickler makes tensors and plain containers, and refuses everything else that a pickle asks for.
It tells where each tensor is stored: the file is a zip archive of uncompressed records, so that its tensors can be read
later as ranges of bytes, like those of a safetensors file.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import DTYPE_BYTES, TensorRange

if TYPE_CHECKING:
    import torch

_RECORD_HEADER_BYTES = 30  # of a zip record, before its name and extra field
_NESTED = ("state_dict", "model", "module")  # keys of the weights in files that hold a training state too


def read_pickled(file: Path, allow_pickle: bool) -> Mapping[str, TensorRange]:
    """Return name -> range of every tensor of a pickled file.

    Raises:
        SourceError: pickles are not allowed, or the file holds more than weights, or it cannot be read.
    """
    if not allow_pickle:
        raise SourceError(
            f"{file}: is a pickle, which can run code when opened; save it as safetensors, or give --allow-pickle to "
            f"read it without running any"
        )
    content = _load(file)
    records = _records(file)
    weights = _weights_of(file, content)
    tensors = {str(name): value for name, value in weights.items() if hasattr(value, "untyped_storage")}
    if not tensors:
        raise SourceError(f"{file}: holds no tensor at its top, nor under {' or '.join(_NESTED)}; give another file")
    starts = {tensor.untyped_storage().data_ptr() for tensor in _tensors_in(content) if tensor.numel()}
    # The whole file is mapped into memory, so tensors are as far apart in memory as they are in the file.
    base = _base_address(starts, records)
    if base is None:
        raise SourceError(f"{file}: its tensors cannot be located in it; save it as safetensors")
    return {name: _range_of(file, name, tensor, base) for name, tensor in tensors.items()}


def _load(file: Path) -> Any:
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        asked = str(error).replace("\n", " ")
        raise SourceError(
            f"{file}: was refused, and nothing in it was run: it holds more than weights ({_reason(asked)}); save its "
            f"weights alone as safetensors on a machine you can afford to lose"
        ) from None
    except (RuntimeError, ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{file}: cannot be read as a file of torch 1.6 or later ({str(error).splitlines()[0]}); save it again"
        ) from None


def _weights_of(file: Path, content: Any) -> Mapping[str, Any]:
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise SourceError(f"{file}: holds a {type(content).__name__}, not weights by name; give another file")
    return content


def _tensors_in(content: Any) -> Iterator[torch.Tensor]:
    if hasattr(content, "untyped_storage"):
        yield content
    elif isinstance(content, Mapping | list | tuple):
        for value in content.values() if isinstance(content, Mapping) else content:
            yield from _tensors_in(value)


def _reason(message: str) -> str:
    """Return what the unpickler refused, without its advice to trust the file."""
    found = message.partition("WeightsUnpickler error: ")[2] or message
    return found.partition(" Please ")[0].strip().rstrip(".")


def _records(file: Path) -> list[int]:
    """Return the offsets in bytes of the records that hold tensors, sorted."""
    offsets = []
    with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
        for record in archive.infolist():
            if "/data/" not in record.filename:
                continue
            stream.seek(record.header_offset)
            header = stream.read(_RECORD_HEADER_BYTES)
            name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
            if record.file_size:
                offsets.append(record.header_offset + _RECORD_HEADER_BYTES + name_bytes + extra_bytes)
    return sorted(offsets)


def _base_address(starts: set[int], records: list[int]) -> int | None:
    """Return the memory address at which the mapped file starts; None if it is ambiguous.

    Args:
        starts: addresses of the tensors' storages.
        records: offsets of the records in the file.
    """
    if not starts or not records:
        return 0 if not starts else None
    known, first = set(records), min(starts)
    candidates = [first - offset for offset in records if all(start - first + offset in known for start in starts)]
    return candidates[0] if len(candidates) == 1 else None


def _range_of(file: Path, name: str, tensor: torch.Tensor, base: int) -> TensorRange:
    from sdcompress.files.torch_tensors import NAME_OF_DTYPE

    dtype = NAME_OF_DTYPE.get(tensor.dtype)
    if dtype is None:
        raise SourceError(f"{file}: tensor {name} has dtype {tensor.dtype}, which is not supported")
    if not tensor.is_contiguous():
        raise SourceError(
            f"{file}: tensor {name} is stored in another order than its shape says; save it as safetensors"
        )
    offset = tensor.data_ptr() - base if tensor.numel() else 0
    return TensorRange(file, dtype, tuple(tensor.shape), offset, tensor.numel() * DTYPE_BYTES[dtype])
