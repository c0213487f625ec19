"""Writing a denoiser as one GGUF file, tensor by tensor, with a JSON file beside it that describes it."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.backends.gguf.layouts import Layout, layout_of
from sdcompress.backends.gguf.types import StoredTensor, choose_types
from sdcompress.environment import installed_versions
from sdcompress.errors import ArtifactError, UserError
from sdcompress.files.artifact import partial_folder, sha256_of, write_json
from sdcompress.progress import Listener, ProgressEvent, silent
from sdcompress.sources.source import DENOISERS, Source
from sdcompress.sources.spec import ComponentSpec
from sdcompress.version import __version__

if TYPE_CHECKING:
    import numpy as np

SCHEMA = 1
_LARGEST_F16 = 65504.0


def denoiser_of(source: Source) -> ComponentSpec:
    """Return the component that becomes a GGUF file.

    Raises:
        UserError: the pipeline has none that other runtimes could open.
    """
    if source.format != "safetensors":
        raise UserError(f"{source.name}: holds exported graphs; convert the pipeline that it was exported from")
    found = next((source.components[name] for name in DENOISERS if name in source.components), None)
    if found is None:
        raise UserError(f"{source.name}: has neither a UNet nor a transformer, the components that GGUF files hold")
    quantization = found.config.get("quantization_config")
    if isinstance(quantization, Mapping):
        what = "pruned to shapes of sdcompress's own" if quantization.get("pruning") else "quantized already"
        raise UserError(
            f"{source.name}: its {found.name} is {what}, which no reader of GGUF understands; convert the original"
        )
    return found


def write_gguf(
    source: Source,
    out: Path,
    *,
    wanted: str,
    keys: str | None,
    rest: str,
    keep_sensitive: bool,
    force: bool,
    listener: Listener = silent,
) -> dict[str, Any]:
    """Write the denoiser to `out` as GGUF, and facts about the file to `out`.json; return the facts.

    Nothing is left of a run that fails or is interrupted.

    Args:
        wanted: type of the weights, one of TYPES.
        keys: names of the tensors, one of KEYS; None for the original ones where they are known.
        rest: type of the tensors of several dimensions that keep their precision.
        keep_sensitive: whether types below 8 bits leave sensitive layers alone.
        listener: told of the source bytes that are done.

    Raises:
        UserError: the package is missing, or the component cannot be written as GGUF.
        ArtifactError: the output is in the way, or the disk is full.
    """
    spec, layout, stored = check_plan(source, out, wanted, keys, rest, keep_sensitive, force)
    partial = partial_folder(out)
    new_folders = [folder for folder in out.parents if not folder.exists()]  # the innermost first
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(source, spec, layout, stored, wanted, partial, listener)
        facts = _facts(source, spec, layout, stored, wanted, partial)
        write_json(facts_file(out), facts)
        os.replace(partial, out)
    except OSError as error:
        raise ArtifactError(f"{error.filename or out}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
            for folder in () if out.exists() else new_folders:
                folder.rmdir()
    return facts


def check_plan(
    source: Source, out: Path, wanted: str, keys: str | None, rest: str, keep_sensitive: bool, force: bool
) -> tuple[ComponentSpec, Layout, tuple[StoredTensor, ...]]:
    """Return the component, the names of its tensors, and their types, without reading a weight.

    Raises:
        UserError, ArtifactError: as `write_gguf`.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("--to gguf: the package gguf is not installed; pip install 'sdcompress[gguf]'")
    spec = denoiser_of(source)
    layout = layout_of(spec, keys)
    stored = choose_types(spec, layout, wanted, rest, keep_sensitive)
    _check_file(out, stored, force)
    return spec, layout, stored


def facts_file(out: Path) -> Path:
    """Return the path of the JSON file that describes the GGUF file."""
    return out.with_name(out.name + ".json")


def _check_file(out: Path, stored: tuple[StoredTensor, ...], force: bool) -> None:
    """Raise ArtifactError if `out` exists or is no place for a file, or the disk is full."""
    if out.suffix != ".gguf":
        raise UserError(f"--out {out}: must end in .gguf, since readers recognize the format by it")
    if out.is_dir() or (out.exists() and not force):
        raise ArtifactError(f"{out}: exists already; choose another --out, or --force to replace it")
    existing = next((folder for folder in out.absolute().parents if folder.exists()), None)
    if existing is None or not existing.is_dir():
        raise ArtifactError(f"{out}: lies under a file, not a folder; choose another --out")
    needed, free = sum(tensor.size_bytes for tensor in stored), shutil.disk_usage(existing).free
    if free < needed:
        raise ArtifactError(
            f"{existing}: the disk is full: the file needs {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free"
        )


def _write(
    source: Source,
    spec: ComponentSpec,
    layout: Layout,
    stored: tuple[StoredTensor, ...],
    wanted: str,
    file: Path,
    listener: Listener,
) -> None:
    import gguf
    import numpy as np

    logging.getLogger("gguf").setLevel(logging.WARNING)  # it logs its plan
    writer = gguf.GGUFWriter(file, layout.architecture)
    writer.add_type("model")
    writer.add_name(source.name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{wanted.upper()}"])
    for key, value in _metadata(source, spec, layout).items():
        writer.add_string(f"sdcompress.{key}", value)
    kinds = {tensor.type: gguf.GGMLQuantizationType[tensor.type.upper()] for tensor in stored}
    for tensor in stored:
        # Any data type but uint8 makes the writer take the shape as numbers, not bytes.
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size_bytes, kinds[tensor.type])
    done_bytes = 0
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in stored:
            pieces = []
            for piece in tensor.rows:
                values = _read(source, spec.name, piece.tensor, slice(piece.start, piece.stop))
                if tensor.type == "f16":
                    _check_range(values, tensor, spec.name)
                pieces.append(gguf.quants.quantize(values, kinds[tensor.type]))
                whole = spec.tensors[piece.tensor]
                rows = whole.shape[0] if whole.shape else 1
                done_bytes += whole.size_bytes * (piece.stop - piece.start) // rows
                listener(ProgressEvent("writing", spec.name, done_bytes, spec.weights_bytes, "bytes"))
            writer.write_tensor_data(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
        for stream in writer.fout or ():
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        writer.close()


def _read(source: Source, component: str, name: str, rows: slice) -> np.ndarray[Any, Any]:
    """Return these rows of a tensor in float32."""
    tensor = source.reader(component)(name)
    return (tensor[rows] if tensor.dim() else tensor.reshape(1)).float().contiguous().numpy()


def _check_range(values: np.ndarray[Any, Any], tensor: StoredTensor, component: str) -> None:
    import numpy as np

    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= _LARGEST_F16:
        raise UserError(
            f"{component}.{tensor.rows[0].tensor}: has a {largest:.3g}, and float16 ends at {_LARGEST_F16:.0f}; use "
            f"--rest f32, and another --type if that is f16"
        )


def _metadata(source: Source, spec: ComponentSpec, layout: Layout) -> dict[str, str]:
    """Return what the file says about itself under `sdcompress.`: enough to build its model."""
    return {
        "version": __version__,
        "source": source.name,
        "component": spec.name,
        "class_name": spec.class_name,
        "keys": layout.keys,
        "config": json.dumps(dict(spec.config), sort_keys=True),
    }


def _facts(
    source: Source,
    spec: ComponentSpec,
    layout: Layout,
    stored: tuple[StoredTensor, ...],
    wanted: str,
    file: Path,
) -> dict[str, Any]:
    by_type: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for tensor in stored:
        by_type[tensor.type] += tensor.parameters
        if tensor.reason:
            left[tensor.reason] += tensor.parameters
    parameters, size_bytes = sum(by_type.values()), file.stat().st_size
    tensors_bytes = sum(tensor.size_bytes for tensor in stored)
    return {
        "schema_version": SCHEMA,
        "sdcompress": __version__,
        "source": {"name": source.name, "kind": source.kind, "hub_id": source.hub_id},
        "component": spec.name,
        "class_name": spec.class_name,
        "architecture": layout.architecture,
        "keys": layout.keys,
        "type": wanted,
        "size_bytes": size_bytes,
        "sha256": sha256_of(file),
        "parameters": parameters,
        "bits_per_weight": 8 * tensors_bytes / parameters if parameters else 0.0,
        "parameters_by_type": dict(by_type),
        "parameters_left": dict(left),
        "versions": {"python": platform.python_version(), **installed_versions()},
        "tensors": {
            tensor.name: {"type": tensor.type, "shape": list(tensor.shape)}
            | ({"reason": tensor.reason} if tensor.reason else {})
            for tensor in stored
        },
    }
