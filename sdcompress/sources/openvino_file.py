"""OpenVINO folders: names, shapes and dtypes of the weights, read from the XML without openvino.

OpenVINO IR (https://docs.openvino.ai, "Operation Sets"): `openvino_model.xml` lists the layers. The data of a `Const`
layer is a range of bytes of `openvino_model.bin`. The metadata of the ONNX file it was converted from is in `rt_info`.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from sdcompress.errors import SourceError
from sdcompress.sources.graph_folder import METADATA_KEY, Graph, choose_weights, open_graph_folder, parse_counts
from sdcompress.sources.source import DENOISERS, Kind, Source
from sdcompress.sources.spec import TensorSpec, parameter

MODEL_FILE = "openvino_model.xml"
DATA_FILE = "openvino_model.bin"
# OpenVINO's element types -> safetensors' names.
_DTYPES = {
    "f32": "F32", "f16": "F16", "bf16": "BF16", "f64": "F64", "i8": "I8", "u8": "U8", "i4": "I4", "u4": "U4",
    "i16": "I16", "u16": "U16", "i32": "I32", "u32": "U32", "i64": "I64", "u64": "U64", "boolean": "BOOL",
    "f8e4m3": "F8_E4M3", "f8e5m2": "F8_E5M2",
}  # fmt: skip


def is_openvino_folder(folder: Path) -> bool:
    """Return whether the denoiser of the pipeline in `folder` is OpenVINO IR."""
    return any((folder / name / MODEL_FILE).is_file() for name in DENOISERS)


def open_openvino_folder(path: Path, name: str, kind: Kind, hub_id: str | None) -> Source:
    """Return the pipeline in an OpenVINO folder, as `open_graph_folder` does."""
    return open_graph_folder(path, name, kind, hub_id, "openvino", MODEL_FILE, read_ir)


def read_ir(file: Path) -> Graph:
    """Return the weights of an OpenVINO IR.

    IR converted from an ONNX file that sdcompress wrote says which constants are weights, and how many parameters each
    stands for. In other files every float and every integer of at most 8 bits counts, scales and zero points too.

    Raises:
        SourceError: the IR is damaged.
    """
    data = file.with_suffix(".bin")
    try:
        root = ElementTree.parse(file).getroot()
        held_bytes = data.stat().st_size
    except ElementTree.ParseError as error:
        raise SourceError(f"{file}: is no whole OpenVINO IR ({error}); convert or download it again") from None
    except OSError as error:
        raise SourceError(f"{error.filename or file}: cannot be read ({error.strerror}); download it again") from None
    entry = root.find(f"./rt_info/framework/{METADATA_KEY}")
    counts = parse_counts(file, None if entry is None else entry.get("value", ""))
    constants: dict[str, TensorSpec] = {}
    for layer in root.iter("layer"):
        if layer.get("type") == "Const":
            name, spec, end = _constant(file, layer)
            if end > held_bytes:
                raise SourceError(f"{data}: ends {end - held_bytes:,} bytes before the last tensor of {file.name} does")
            constants[name] = spec
    return Graph(choose_weights(file, constants, counts), (file, data), counts is not None)


def _constant(file: Path, layer: ElementTree.Element) -> tuple[str, TensorSpec, int]:
    """Return the constant's name, its spec, and where in the data it ends in bytes."""
    name, data = layer.get("name", ""), layer.find("data")
    attributes = {} if data is None else data.attrib
    try:
        shape = tuple(int(size) for size in attributes.get("shape", "").split(",") if size.strip())
        spec = parameter(shape, _DTYPES[attributes["element_type"]])
        return name, spec, int(attributes["offset"]) + int(attributes["size"])
    except (KeyError, ValueError):
        raise SourceError(f"{file}: its constant {name} is malformed, or of a type that is not supported") from None
