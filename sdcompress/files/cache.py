"""The cache folder, and writing a file so that it is never half written.

The folder is `$SDCOMPRESS_CACHE`, or else `sdcompress` in the user's cache folder. It can be deleted at any time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE_VARIABLE = "SDCOMPRESS_CACHE"


def cache_folder() -> Path:
    """Return the cache folder. It may not exist yet."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "sdcompress"


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a path to write to. It is renamed to `file` at the end of the context, and deleted if that raises."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=file.parent, suffix=".unfinished")
    os.close(handle)
    try:
        yield Path(unfinished)
        os.replace(unfinished, file)
    finally:
        Path(unfinished).unlink(missing_ok=True)
