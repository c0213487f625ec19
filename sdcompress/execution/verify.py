"""Checking that an artifact is what its manifest says, and that it still opens."""

from __future__ import annotations

from pathlib import Path

from sdcompress.errors import SdcompressError
from sdcompress.files.artifact import file_problems
from sdcompress.files.manifest import read_manifest
from sdcompress.progress import Listener, silent
from sdcompress.sources.folder import open_folder


def verify(folder: Path, *, load: bool = True, listener: Listener = silent) -> list[str]:
    """Return what is wrong with an artifact: its files and hashes, its shapes, and opening it.

    Args:
        load: also open the pipeline.
        listener: told of the bytes that are hashed.

    Raises:
        ArtifactError: the folder has no manifest.
    """
    manifest = read_manifest(folder)
    problems = file_problems(folder, manifest, listener)
    try:
        source = open_folder(folder)
    except SdcompressError as error:
        return [*problems, str(error)]
    for name, entry in manifest.components.items():
        spec = source.components.get(name)
        if spec is None:
            problems.append(f"{folder / name}: missing")
            continue
        for what, actual, listed in (
            ("parameters", spec.parameters, entry.parameters.compressed),
            ("weights_bytes", spec.weights_bytes, entry.weights_bytes.compressed),
        ):
            if actual != listed:
                problems.append(f"{folder / name}: {what} is {actual:,}, the manifest says {listed:,}")
    if load and not problems:
        from sdcompress.backends.open_pipeline import open_pipeline

        try:
            open_pipeline(folder, device="cpu", dtype="auto")
        except SdcompressError as error:
            problems.append(str(error))
    return problems
