"""ONNX folders: names, shapes and dtypes of the weights, read without the external data."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.sources.graph_folder import METADATA_KEY, Graph, choose_weights, open_graph_folder, parse_counts
from sdcompress.sources.source import DENOISERS, Kind, Source
from sdcompress.sources.spec import TensorSpec, parameter

MODEL_FILE = "model.onnx"
_OTHER_WEIGHTS = (".safetensors", ".bin")

# onnx.TensorProto.DataType -> safetensors' name.
_DTYPES = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32",
    13: "U64", 16: "BF16", 17: "F8_E4M3", 19: "F8_E5M2", 21: "U4", 22: "I4",
}  # fmt: skip


def is_onnx_folder(folder: Path) -> bool:
    """Return whether the denoiser of the pipeline in `folder` is an ONNX graph without other weights beside it."""
    for name in DENOISERS:
        if (folder / name / MODEL_FILE).is_file():
            return not any(file.name.endswith(_OTHER_WEIGHTS) for file in (folder / name).iterdir())
    return False


def open_onnx_folder(path: Path, name: str, kind: Kind, hub_id: str | None) -> Source:
    """Return the pipeline in an ONNX folder, as `open_graph_folder` does."""
    return open_graph_folder(path, name, kind, hub_id, "onnx", MODEL_FILE, read_graph)


def read_graph(file: Path) -> Graph:
    """Return the weights of an ONNX file.

    Files that sdcompress wrote say in their metadata which initializers are weights, and how many parameters each
    stands for. In other files every float and every integer of at most 8 bits counts, scales and zero points too.

    Raises:
        SourceError: the file or its external data is damaged, or the onnx package is not installed.
    """
    model = _load(file)
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    counts = parse_counts(file, text)
    constants: dict[str, TensorSpec] = {}
    ends = {file: 0}  # file -> where its last tensor ends, in bytes
    for tensor in model.graph.initializer:
        where, end = _external_range(file, tensor)
        if where is not None:
            ends[where] = max(ends.get(where, 0), end)
        if counts is not None and tensor.name not in counts:
            continue
        if tensor.data_type not in _DTYPES:
            raise SourceError(f"{file}: tensor {tensor.name} has ONNX type {tensor.data_type}, which is not supported")
        constants[tensor.name] = parameter(tuple(tensor.dims), _DTYPES[tensor.data_type])
    _check_sizes(file, ends)
    return Graph(choose_weights(file, constants, counts), tuple(ends), counts is not None)


def _load(file: Path) -> Any:
    if importlib.util.find_spec("onnx") is None:
        raise SourceError(f"{file}: reading ONNX files needs the onnx package; pip install 'sdcompress[onnx]'")
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(str(file), load_external_data=False)
    except DecodeError:
        raise SourceError(f"{file}: is not a whole ONNX file; export or download it again") from None
    except OSError as error:
        raise SourceError(f"{file}: cannot be read ({error.strerror})") from None


def _external_range(file: Path, tensor: Any) -> tuple[Path | None, int]:
    """Return the file that holds the tensor's data, and where in it the data ends in bytes; None for `file` itself."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not entries:
        return None, 0
    location = PurePosixPath(entries.get("location", "").replace("\\", "/"))
    if not location.name or location.is_absolute() or ".." in location.parts:
        raise SourceError(
            f"{file}: tensor {tensor.name} lies in {location}, outside of its folder; do not use the file"
        )
    try:
        return file.parent / location, int(entries.get("offset", 0)) + int(entries.get("length", 0))
    except ValueError:
        raise SourceError(f"{file}: where tensor {tensor.name} lies is malformed; export it again") from None


def _check_sizes(file: Path, ends: Mapping[Path, int]) -> None:
    for where, end in ends.items():
        if not where.is_file():
            raise SourceError(f"{where}: missing, though {file.name} keeps weights in it; download the folder again")
        missing = end - where.stat().st_size
        if missing > 0:
            raise SourceError(
                f"{where}: ends {missing:,} bytes before the last tensor of {file.name} does; download it again"
            )
