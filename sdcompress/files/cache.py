"""Where things are kept that can be made again, and files in it that are whole or not there.

The folder is `$SDCOMPRESS_CACHE`, else `sdcompress` in the user's cache folder; it can be deleted at any time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE_VARIABLE = "SDCOMPRESS_CACHE"


def cache_folder() -> Path:
    """The folder; it may not exist yet."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "sdcompress"


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place at the end of the context unless something was raised."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=file.parent, suffix=".unfinished")
    os.close(handle)
    try:
        yield Path(unfinished)
        os.replace(unfinished, file)
    finally:
        Path(unfinished).unlink(missing_ok=True)
