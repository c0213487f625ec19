"""The model a benchmark runs on: the built-in tiny-sd, a folder, or a catalog entry with random float32 weights."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks.random_pipeline import build_random_pipeline
from sdcompress import open_source
from sdcompress.errors import SourceError
from sdcompress.sources import catalog

WHOLE = ".whole"


def is_random(name: str) -> bool:
    """Whether a model of that name gets random weights."""
    return catalog.find(name) is not None


def open_model(name: str, work: Path) -> tuple[str, str, Path]:
    """The model as `open_source` takes it, its folder, and the folder in `work` that holds all that is made from it."""
    entry = catalog.find(name)
    if entry is None:
        source = open_source(name)
        if source.path is None:
            raise SourceError(f"{name}: has no weights here; give tiny-sd, a folder, or {', '.join(catalog.names())}")
        folder = source.path.resolve()
        return name if source.kind == "built-in" else str(folder), str(folder), work.resolve() / folder.name
    folder = work.resolve() / f"{name}-random" / "model"
    if not (folder / WHOLE).exists():
        print(f"building {name} with random weights", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        build_random_pipeline(name, folder, dtype="float32")
        (folder / WHOLE).touch()
    return str(folder), str(folder), folder.parent
