"""An ONNX folder as OpenVINO IR: graph by graph through OpenVINO's own reader and writer, in optimum-intel's layout."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdcompress.backends.openvino.runtime import import_openvino
from sdcompress.environment import installed_versions
from sdcompress.errors import ArtifactError, InternalError, UserError
from sdcompress.files.artifact import (
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    check_output,
    partial_folder,
    publish,
    sha256_of,
    write_json,
)
from sdcompress.files.artifact import read_manifest as read_artifact
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
    advance: Callable[[str, int], None] = lambda component, size_bytes: None,
) -> dict[str, Any]:
    """The manifest of the folder written to `out`; `advance` is told component and bytes of weights as they are done.

    Raises UserError (openvino missing, not an ONNX folder), ArtifactError (output in the way, disk full, a graph that
    OpenVINO cannot read). Nothing is left of a run that fails or is interrupted.
    """
    check_conversion(source, out, force)
    assert source.path is not None
    partial = partial_folder(out)
    shutil.rmtree(partial, ignore_errors=True)
    missing = [folder for folder in (partial, *partial.parents) if not folder.exists()]
    try:
        partial.mkdir(parents=True)
        _check_space(source, partial)
        for name in source.components:
            for folder in graph_folders(source.path, name, onnx_file.MODEL_FILE):
                _convert(folder, partial / folder.name)
            advance(name, source.components[name].weights_bytes)
        _copy_files(source, partial)
        manifest = _manifest(source, partial)
        (partial / "README.md").write_text(_readme(source, manifest), encoding="utf-8")
        manifest["files"] = {
            str(file.relative_to(partial)): {"size_bytes": file.stat().st_size, "sha256": sha256_of(file)}
            for file in sorted(file for file in partial.rglob("*") if file.is_file())
        }
        write_json(partial / MANIFEST_NAME, manifest)
        publish(partial, out)
    except OSError as error:
        raise ArtifactError(f"{error.filename or partial}: cannot be written ({error.strerror})") from None
    finally:
        if partial.exists():
            shutil.rmtree(missing[-1], ignore_errors=True)
    return manifest


def check_conversion(source: Source, out: Path, force: bool) -> None:
    """Raises what `write_openvino` would, before any work."""
    import_openvino()
    if source.format != "onnx":
        raise UserError(
            f"{source.name}: is no ONNX folder; export it first (`sdcompress compress {source.name} --recipe onnx-int8 "
            f"--out DIR`, or another recipe with target: onnx), then convert DIR"
        )
    check_output(out, resume=True, force=force)
    if partial_folder(out).exists() and not force:
        raise ArtifactError(f"{partial_folder(out)}: an interrupted run left this; remove it, or --force starts anew")


def _convert(folder: Path, to: Path) -> None:
    """Writes the graph in `folder` as IR into `to`, its weights in the precision that they have."""
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


def _copy_files(source: Source, partial: Path) -> None:
    """Configs, tokenizers and licences, as they are."""
    assert source.path is not None
    for relative in source.other_files:
        target = partial / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path / relative, target)


def _manifest(source: Source, partial: Path) -> dict[str, Any]:
    """The ONNX artifact's manifest with the sizes of what was written; a new one for a folder of other origin."""
    assert source.path is not None
    written = open_openvino_folder(partial, source.name, "folder", source.hub_id)
    lost = [name for name, spec in source.components.items() if written.components[name].parameters < spec.parameters]
    if lost:
        raise InternalError(f"{source.name}: {lost[0]} has fewer parameters in OpenVINO IR than in ONNX")
    made = read_artifact(source.path) if (source.path / MANIFEST_NAME).is_file() else {}
    entries: Mapping[str, Any] = made.get("components", {})
    components = {}
    for name, spec in written.components.items():
        before = entries.get(name, {})
        components[name] = {
            "class_name": spec.class_name,
            "library": spec.library,
            "steps": [],
            "layers": {},
            **before,
            "parameters": {"original": spec.parameters, **before.get("parameters", {}), "compressed": spec.parameters},
            "weights_bytes": {
                "original": source.components[name].weights_bytes,
                **before.get("weights_bytes", {}),
                "compressed": spec.weights_bytes,
            },
            "bits_per_weight": spec.bits_per_weight,
            "parameters_of_packed": {},
        }
    return {
        "schema_version": MANIFEST_SCHEMA,
        "sdcompress": __version__,
        "source": made.get("source", {"name": source.name, "kind": source.kind, "hub_id": source.hub_id}),
        "recipe": made.get("recipe", {}),
        "pipeline_class": source.pipeline_class,
        "converted": {"to": "openvino", "from": source.name},
        "versions": {"python": platform.python_version(), **installed_versions()},
        "components": components,
    }


def _readme(source: Source, manifest: Mapping[str, Any]) -> str:
    parameters = sum(entry["parameters"]["compressed"] for entry in manifest["components"].values())
    return (
        f"# {Path(source.name).name} for OpenVINO\n\n"
        f"{manifest['pipeline_class']}, {parameters:,} parameters, as OpenVINO IR in optimum-intel's layout. Made by "
        f"sdcompress {manifest['sdcompress']} with openvino {manifest['versions'].get('openvino', '')} from the ONNX "
        f"folder; `sdcompress.json` says how.\n\n"
        f"```python\nimport sdcompress\n\npipeline = sdcompress.open_pipeline("
        f'"PATH")  # or optimum.intel.OVDiffusionPipeline.from_pretrained("PATH", safety_checker=None)\n```\n'
    )
