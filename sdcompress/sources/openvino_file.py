"""OpenVINO folders as Sources: names, shapes and dtypes of their weights, read from the XML without openvino.

OpenVINO IR (https://docs.openvino.ai, "Operation Sets"): `openvino_model.xml` lists the layers; a `Const` layer's data
is so many bytes of `openvino_model.bin` from an offset. What an ONNX file's metadata said stands under `rt_info`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from sdcompress.errors import SourceError
from sdcompress.sources.onnx_file import METADATA_KEY, Graphs, folder_source
from sdcompress.sources.source import DENOISERS, Source
from sdcompress.sources.spec import TensorSpec, parameter

MODEL_FILE = "openvino_model.xml"
DATA_FILE = "openvino_model.bin"
# OpenVINO's element types -> safetensors' names.
_DTYPES = {
    "f32": "F32", "f16": "F16", "bf16": "BF16", "f64": "F64", "i8": "I8", "u8": "U8", "i4": "I4", "u4": "U4",
    "i16": "I16", "u16": "U16", "i32": "I32", "u32": "U32", "i64": "I64", "u64": "U64", "boolean": "BOOL",
    "f8e4m3": "F8_E4M3", "f8e5m2": "F8_E5M2",
}  # fmt: skip
_WEIGHT_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U8", "I4", "U4"})


def is_openvino_folder(folder: Path) -> bool:
    """Whether the pipeline's denoiser is OpenVINO IR there."""
    return any((folder / name / MODEL_FILE).is_file() for name in DENOISERS)


def open_openvino_folder(
    path: Path, name: str, kind: Literal["built-in", "folder", "hub"], hub_id: str | None
) -> Source:
    """The folder as a Source of format `openvino`; vae_encoder and vae_decoder are its one component vae."""
    return folder_source(path, name, kind, hub_id, "openvino", MODEL_FILE, read_ir)


def read_ir(file: Path) -> Graphs:
    """The weights of one IR. SourceError says what is wrong with a file that is not whole.

    IR of an ONNX file that sdcompress wrote says which constants are weights, and for how many parameters each stands.
    In others every float and every integer of 8 bits or less counts, scales and zero points too.
    """
    data = file.with_suffix(".bin")
    try:
        root = ElementTree.parse(file).getroot()
        held_bytes = data.stat().st_size
    except ElementTree.ParseError as error:
        raise SourceError(f"{file}: is no whole OpenVINO IR ({error}); convert or download it again") from None
    except OSError as error:
        raise SourceError(f"{error.filename or file}: cannot be read ({error.strerror}); download it again") from None
    counts = _counts(file, root)
    tensors: dict[str, TensorSpec] = {}
    for layer in root.iter("layer"):
        if layer.get("type") != "Const":
            continue
        name, spec, end = _constant(file, layer)
        if end > held_bytes:
            raise SourceError(f"{data}: ends {end - held_bytes:,} bytes before the last tensor of {file.name} does")
        if counts is not None and name in counts:
            tensors[name] = TensorSpec(spec.shape, spec.dtype, counts[name])
        elif counts is None and spec.dtype in _WEIGHT_DTYPES:
            tensors[name] = spec
    lacking = sorted(set(counts or ()) - set(tensors))
    if lacking:
        raise SourceError(f"{file}: its metadata lists {lacking[0]}, which it does not hold; convert the model again")
    return Graphs(tensors, (file, data), counts is not None)


def _counts(file: Path, root: ElementTree.Element) -> dict[str, int] | None:
    entry = root.find(f"./rt_info/framework/{METADATA_KEY}")
    if entry is None:
        return None
    try:
        return {str(name): int(count) for name, count in json.loads(entry.get("value", ""))["parameters"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SourceError(f"{file}: its metadata entry {METADATA_KEY} is malformed; convert the model again") from None


def _constant(file: Path, layer: ElementTree.Element) -> tuple[str, TensorSpec, int]:
    """Its name, its spec, and where in the data it ends in bytes."""
    name, data = layer.get("name", ""), layer.find("data")
    try:
        assert data is not None
        kind, sizes = data.attrib["element_type"], data.get("shape", "")
        shape = tuple(int(size) for size in sizes.split(",") if size.strip())
        return name, parameter(shape, _DTYPES[kind]), int(data.attrib["offset"]) + int(data.attrib["size"])
    except (AssertionError, KeyError, ValueError):
        raise SourceError(f"{file}: its constant {name} is of a kind that is not supported, or malformed") from None
