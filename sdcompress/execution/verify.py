"""Checking that an artifact is what its manifest says and that it still opens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdcompress.errors import SdcompressError
from sdcompress.files.artifact import file_problems, read_manifest
from sdcompress.sources.opening import open_folder


def verify(folder: Path, *, load: bool = True, advance: Callable[[int], None] | None = None) -> list[str]:
    """What is wrong with the artifact: files and hashes, shapes against the manifest, opening; empty if nothing is.

    Raises ArtifactError when the folder holds no manifest.
    """
    manifest = read_manifest(folder)
    problems = file_problems(folder, manifest, advance)
    try:
        source = open_folder(folder)
    except SdcompressError as error:
        return [*problems, str(error)]
    for name, entry in manifest["components"].items():
        spec = source.components.get(name)
        if spec is None:
            problems.append(f"{folder / name}: missing")
            continue
        for field in ("parameters", "weights_bytes"):
            actual, said = getattr(spec, field), entry[field]["compressed"]
            if actual != said:
                problems.append(f"{folder / name}: {field} is {actual:,}, the manifest says {said:,}")
    if load and not problems:
        from sdcompress.backends.open_pipeline import open_pipeline

        try:
            open_pipeline(folder, device="cpu", dtype="auto")
        except SdcompressError as error:
            problems.append(str(error))
    return problems
