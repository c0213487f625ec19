"""An ONNX folder as OpenVINO IR: graph by graph through OpenVINO's own reader and writer, in optimum-intel's layout."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

from sdcompress.backends.openvino.runtime import import_openvino
from sdcompress.environment import installed_versions
from sdcompress.errors import ArtifactError, InternalError, UserError
from sdcompress.files.artifact import check_output, list_files, partial_folder, publish, write_json
from sdcompress.files.manifest import (
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    BeforeAndAfter,
    ComponentEntry,
    Manifest,
    SourceEntry,
    is_artifact,
    read_manifest,
)
from sdcompress.progress import Listener, ProgressEvent, silent
from sdcompress.sources import onnx_file
from sdcompress.sources.graph_folder import graph_folders
from sdcompress.sources.openvino_file import MODEL_FILE, open_openvino_folder
from sdcompress.sources.source import Source
from sdcompress.version import __version__

_SPARE_BYTES = 2**24  # the XML, which says more about each node than ONNX does


def write_openvino(
    source: Source,
    out: Path,
    *,
    force: bool = False,
    listener: Listener = silent,
) -> Manifest:
    """Write an ONNX folder to `out` as OpenVINO IR, and return its manifest.

    Nothing is left of a run that fails or is interrupted.

    Args:
        listener: told of the components that are done, in bytes of their weights.

    Raises:
        UserError: the package openvino is missing, or the source is no ONNX folder.
        ArtifactError: the output is in the way, the disk is full, or OpenVINO cannot read a graph.
    """
    folder = check_conversion(source, out, force)
    partial = partial_folder(out)
    shutil.rmtree(partial, ignore_errors=True)
    missing = [folder for folder in (partial, *partial.parents) if not folder.exists()]
    try:
        partial.mkdir(parents=True)
        _check_space(source, partial)
        for name in source.components:
            for graphs in graph_folders(folder, name, onnx_file.MODEL_FILE):
                _convert(graphs, partial / graphs.name)
            size = source.components[name].weights_bytes
            listener(ProgressEvent("writing", name, size, size, "bytes"))
        for relative in source.other_files:
            source.copy_file(relative, partial / relative)
        manifest = _manifest(source, folder, partial)
        (partial / "README.md").write_text(_readme(source, manifest), encoding="utf-8")
        manifest = manifest.model_copy(update={"files": list_files(partial)})
        write_json(partial / MANIFEST_NAME, _as_json(manifest))
        publish(partial, out)
    except OSError as error:
        raise ArtifactError(f"{error.filename or partial}: cannot be written ({error.strerror})") from None
    finally:
        if partial.exists():
            shutil.rmtree(missing[-1], ignore_errors=True)
    return manifest


def check_conversion(source: Source, out: Path, force: bool) -> Path:
    """Return the source's folder. Raises what `write_openvino` would, before any work."""
    import_openvino()
    if source.format != "onnx" or source.path is None:
        raise UserError(
            f"{source.name}: is no ONNX folder; export it first (`sdcompress compress {source.name} --recipe onnx-int8 "
            f"--out DIR`, or another recipe with target: onnx), then convert DIR"
        )
    check_output(out, resume=True, force=force)
    if partial_folder(out).exists() and not force:
        raise ArtifactError(f"{partial_folder(out)}: an interrupted run left this; remove it, or --force starts anew")
    return source.path


def _convert(folder: Path, to: Path) -> None:
    """Write the graph in `folder` to `to` as IR, its weights in the precision that they have."""
    openvino = import_openvino()
    file = folder / onnx_file.MODEL_FILE
    try:
        model = openvino.Core().read_model(file)
        to.mkdir()
        openvino.save_model(model, to / MODEL_FILE, compress_to_fp16=False)
    except RuntimeError as error:
        raise ArtifactError(f"{file}: OpenVINO cannot convert it: {' '.join(str(error).split())}") from error


def _check_space(source: Source, partial: Path) -> None:
    needed, free = source.size_bytes + _SPARE_BYTES, shutil.disk_usage(partial).free
    if free < needed:
        raise ArtifactError(
            f"{partial.parent}: the disk is full: the folder needs {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are "
            f"free; free some space or choose another --out"
        )


def _manifest(source: Source, folder: Path, partial: Path) -> Manifest:
    """Return the ONNX artifact's manifest with the sizes of what was written; a new one for any other ONNX folder."""
    written = open_openvino_folder(partial, source.name, "folder", source.hub_id)
    lost = [name for name, spec in source.components.items() if written.components[name].parameters < spec.parameters]
    if lost:
        raise InternalError(f"{source.name}: {lost[0]} has fewer parameters in OpenVINO IR than in ONNX")
    made = read_manifest(folder) if is_artifact(folder) else None
    components = {}
    for name, spec in written.components.items():
        before = made.components.get(name) if made is not None else None
        weights_bytes = source.components[name].weights_bytes
        kept: dict[str, Any] = {"class_name": spec.class_name, "library": spec.library, "steps": [], "layers": {}}
        if before is not None:
            kept |= {field: getattr(before, field) for field in before.model_fields_set}
        components[name] = ComponentEntry.model_validate(
            kept
            | {
                "parameters": BeforeAndAfter(
                    original=before.parameters.original if before else spec.parameters, compressed=spec.parameters
                ),
                "weights_bytes": BeforeAndAfter(
                    original=before.weights_bytes.original if before else weights_bytes, compressed=spec.weights_bytes
                ),
                "bits_per_weight": spec.bits_per_weight,
                "parameters_of_packed": {},
            }
        )
    new = SourceEntry(name=source.name, kind=source.kind, hub_id=source.hub_id)
    return Manifest(
        schema_version=MANIFEST_SCHEMA,
        sdcompress=__version__,
        source=new if made is None else made.source,
        recipe={} if made is None else made.recipe,
        pipeline_class=source.pipeline_class,
        converted={"to": "openvino", "from": source.name},
        versions={"python": platform.python_version(), **installed_versions()},
        components=components,
    )


def _as_json(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest with the keys of each component in the order that OpenVINO folders have had so far."""
    value = manifest.to_json()
    first = dict.fromkeys(("class_name", "library", "steps", "layers"))
    return value | {"components": {name: first | entry for name, entry in value["components"].items()}}


def _readme(source: Source, manifest: Manifest) -> str:
    parameters = sum(entry.parameters.compressed for entry in manifest.components.values())
    return (
        f"# {Path(source.name).name} for OpenVINO\n\n"
        f"{manifest.pipeline_class}, {parameters:,} parameters, as OpenVINO IR in optimum-intel's layout. Made by "
        f"sdcompress {manifest.sdcompress} with openvino {manifest.versions.get('openvino', '')} from the ONNX "
        f"folder; `sdcompress.json` says how.\n\n"
        f"```python\nimport sdcompress\n\npipeline = sdcompress.open_pipeline("
        f'"PATH")  # or optimum.intel.OVDiffusionPipeline.from_pretrained("PATH", safety_checker=None)\n```\n'
    )
