"""Opening the parts of a pipeline without weights (tokenizers, image processors, schedulers)."""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdcompress.errors import ArtifactError, SdcompressError, UserError
from sdcompress.files.artifact import link_folder
from sdcompress.sources.portable_parts import LIBRARY, portable_folder, portable_part
from sdcompress.sources.source import component_entries

# Names that transformers 5 no longer has.
_RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}


def open_small_part(folder: Path, library: str, class_name: str) -> Any:
    """Return the part in `folder` as an object of its class. ArtifactError if it cannot be opened."""
    changed: dict[str, bytes] = {}
    portable = class_name
    if library == LIBRARY and not _opens_as_saved():
        portable, changed = portable_part(class_name, _names_in(folder), lambda name: (folder / name).read_bytes())
    with explaining(ArtifactError, f"{folder}: cannot be opened as {library}.{class_name}"):
        part_class = getattr(importlib.import_module(library), _RENAMED.get(portable, portable))
        if not changed:
            return part_class.from_pretrained(str(folder), local_files_only=True)
        with tempfile.TemporaryDirectory(prefix="sdcompress-") as name:
            copy = Path(shutil.copytree(folder, Path(name) / folder.name))
            _write(copy, changed)
            return part_class.from_pretrained(str(copy), local_files_only=True)


@contextmanager
def explaining(error_class: type[UserError], what: str) -> Iterator[None]:
    """Turn whatever stock loaders raise for files that they cannot open into an error of that class, after `what`.

    They check few files themselves: a broken one gives a TypeError, or a bare Exception of the package tokenizers.
    """
    try:
        yield
    except SdcompressError:
        raise
    except Exception as error:
        raise error_class(f"{what}: {error}") from error


@contextmanager
def as_portable(folder: Path) -> Iterator[Path]:
    """Yield a folder of the pipeline for stock loaders.

    It is the pipeline's own or, if transformers 4 must open what transformers 5 saved, a temporary one with links.
    """
    model_index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [part for part in component_entries(model_index) if (folder / part).is_dir()]
    changed: dict[str, bytes] = {}
    if not _opens_as_saved():
        names_in = {part: _names_in(folder / part) for part in parts}
        changed = portable_folder(model_index, names_in, lambda path: (folder / path).read_bytes())[1]
    if not changed:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sdcompress-") as name:
        links = Path(name)
        shutil.copyfile(folder / "model_index.json", links / "model_index.json")
        rewritten = {path.split("/")[0] for path in changed}
        for part in parts:
            put = shutil.copytree if part in rewritten else link_folder
            put(folder / part, links / part)
        _write(links, changed)
        yield links


def _opens_as_saved() -> bool:
    """Return whether the installed transformers opens what transformers 5 saved."""
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


def _names_in(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()] if folder.is_dir() else []


def _write(folder: Path, contents: dict[str, bytes]) -> None:
    for path, content in contents.items():
        (folder / path).write_bytes(content)
