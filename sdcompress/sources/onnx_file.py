"""ONNX folders as Sources: names, shapes and dtypes of their weights, read without external data."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from sdcompress.errors import SourceError
from sdcompress.sources.source import DENOISERS, Source, component_entries, pipeline_class_of, read_json
from sdcompress.sources.spec import ComponentSpec, TensorSpec, parameter
from sdcompress.sources.weight_files import is_weight_file

MODEL_FILE = "model.onnx"
METADATA_KEY = "sdcompress"
VAE_PARTS = ("vae_encoder", "vae_decoder")
_OTHER_WEIGHTS = (".safetensors", ".bin")

# onnx.TensorProto.DataType -> safetensors' name.
_DTYPES = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32",
    13: "U64", 16: "BF16", 17: "F8_E4M3", 19: "F8_E5M2", 21: "U4", 22: "I4",
}  # fmt: skip
# What weights are made of; other integers of a graph are shapes and axes.
_WEIGHT_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U8", "I4", "U4"})


@dataclass(frozen=True)
class Graphs:
    """The weights of one model.onnx or of several, and the files they lie in."""

    tensors: Mapping[str, TensorSpec]
    files: tuple[Path, ...]
    counted: bool  # whether the file says how many parameters each tensor stands for


def is_onnx_folder(folder: Path) -> bool:
    """Whether the pipeline's denoiser is an ONNX graph there, with no weights of another format beside it."""
    for name in DENOISERS:
        part = folder / name
        if (part / MODEL_FILE).is_file():
            return not any(file.name.endswith(_OTHER_WEIGHTS) for file in part.iterdir())
    return False


def open_onnx_folder(path: Path, name: str, kind: Literal["built-in", "folder", "hub"], hub_id: str | None) -> Source:
    """The ONNX folder `path` as a Source of format `onnx`; vae_encoder and vae_decoder are its one component vae."""
    return folder_source(path, name, kind, hub_id, "onnx", MODEL_FILE, read_graph)


def folder_source(
    path: Path,
    name: str,
    kind: Literal["built-in", "folder", "hub"],
    hub_id: str | None,
    form: Literal["onnx", "openvino"],
    model_file: str,
    reader: Callable[[Path], Graphs],
) -> Source:
    """A folder of graphs, `model_file` in each part's own, as a Source of that format."""
    model_index = read_json(path / "model_index.json", missing=f"{path}: has no model_index.json")
    components: dict[str, ComponentSpec] = {}
    weights: list[Path] = []
    others = [Path("model_index.json"), *(Path(file.name) for file in sorted(path.glob("LICENSE*")) if file.is_file())]
    uncounted: list[str] = []
    for part, (library, class_name) in component_entries(model_index).items():
        graphs = part_folders(path, part, model_file)
        if not graphs and not (path / part).is_dir():
            raise SourceError(
                f"{path / part}: missing, though model_index.json lists {part} ({class_name}); export it too, or write "
                f"[null, null] for it in model_index.json"
            )
        for folder in graphs or (path / part,):
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            others += [file.relative_to(path) for file in files if not is_weight_file(file.name)]
        if not graphs:
            if (path / part / "config.json").is_file():
                raise SourceError(f"{path / part}: has a config.json but no {model_file}; export or download it again")
            continue
        missing = f"{graphs[-1]}: has a {model_file} but no config.json; export or download it again"
        config = read_json(graphs[-1] / "config.json", missing=missing)
        read = read_graphs(graphs, reader, model_file)
        pipeline_class = pipeline_class_of(model_index)
        components[part] = ComponentSpec(part, library, class_name, config, read.tensors, pipeline_class)
        weights += read.files
        if not read.counted:
            uncounted.append(part)
    note = (
        f"{', '.join(uncounted)}: not exported by sdcompress, so every float and small integer of the graph counts "
        f"as a parameter, scales and zero points too"
    )
    return Source(
        name,
        kind,
        model_index,
        components,
        path,
        hub_id,
        other_files=tuple(others),
        notes=(note,) if uncounted else (),
        format=form,
        onnx_files=tuple(weights),
    )


def part_folders(folder: Path, component: str, model_file: str = MODEL_FILE) -> tuple[Path, ...]:
    """The folders that hold the component's graphs: a VAE is two, any other component at most one."""
    names = VAE_PARTS if component == "vae" else (component,)
    return tuple(folder / name for name in names if (folder / name / model_file).is_file())


def read_graphs(
    folders: tuple[Path, ...], reader: Callable[[Path], Graphs] | None = None, model_file: str = MODEL_FILE
) -> Graphs:
    """The graphs of one component taken together; a name that several of them use is prefixed with its folder's."""
    read_one = reader or read_graph
    parts = {folder.name: read_one(folder / model_file) for folder in folders}
    names = [name for part in parts.values() for name in part.tensors]
    shared = {name for name in names if names.count(name) > 1}
    tensors = {
        f"{folder}.{name}" if name in shared else name: spec
        for folder, part in parts.items()
        for name, spec in part.tensors.items()
    }
    files = tuple(file for part in parts.values() for file in part.files)
    return Graphs(tensors, files, all(part.counted for part in parts.values()))


def read_graph(file: Path) -> Graphs:
    """The weights of one graph. SourceError says what is wrong with a file that is not whole.

    Files that sdcompress wrote say in their metadata which initializers are weights, and for how many parameters each
    stands. In others every float and every integer of 8 bits or less counts, scales and zero points too.
    """
    model = _load(file)
    counts = _counts(file, model)
    tensors: dict[str, TensorSpec] = {}
    files = {file: 0}
    for tensor in model.graph.initializer:
        dtype, shape = _DTYPES.get(tensor.data_type), tuple(tensor.dims)
        where, end = _external_range(file, tensor)
        if where is not None:
            files[where] = max(files.get(where, 0), end)
        if counts is not None:
            if tensor.name not in counts:
                continue
        elif dtype not in _WEIGHT_DTYPES and dtype is not None:
            continue
        if dtype is None:
            raise SourceError(f"{file}: tensor {tensor.name} has ONNX type {tensor.data_type}, which is not supported")
        spec = parameter(shape, dtype)
        tensors[tensor.name] = spec if counts is None else TensorSpec(shape, dtype, counts[tensor.name])
    _check_files(file, files)
    lacking = sorted(set(counts or ()) - set(tensors))
    if lacking:
        raise SourceError(f"{file}: its metadata lists {lacking[0]}, which it does not hold; compress the model again")
    return Graphs(tensors, tuple(files), counts is not None)


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


def _counts(file: Path, model: Any) -> dict[str, int] | None:
    """Initializer -> parameters it stands for, as sdcompress wrote it into the file; None in any other file."""
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    if text is None:
        return None
    try:
        return {str(name): int(count) for name, count in json.loads(text)["parameters"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(f"{file}: its metadata entry {METADATA_KEY} is malformed; compress the model again") from None


def _external_range(file: Path, tensor: Any) -> tuple[Path | None, int]:
    """The file beside `file` that holds the tensor, and where in it the tensor ends in bytes; (None, 0) if inside."""
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


def _check_files(file: Path, ends: Mapping[Path, int]) -> None:
    for where, end in ends.items():
        if not where.is_file():
            raise SourceError(f"{where}: missing, though {file.name} keeps weights in it; download the folder again")
        missing = end - where.stat().st_size
        if missing > 0:
            raise SourceError(
                f"{where}: ends {missing:,} bytes before the last tensor of {file.name} does; download it again"
            )
