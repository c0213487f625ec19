"""A folder in the cache that stands for a checkpoint as a diffusers pipeline: all its small files, and where it lies.

Whoever opens the folder gets the pipeline, its weights read from the checkpoint; no weight is kept twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdcompress.files.cache import cache_folder

LINK = "checkpoint.json"  # the file, and the options it is read with


def write_link(files: Mapping[str, bytes], link: Mapping[str, Any]) -> Path:
    """The folder that holds `files` and the link, made unless it is there; the same content gives the same folder."""
    content = {**files, LINK: json.dumps(link, indent=2, sort_keys=True).encode()}
    digest = hashlib.sha256()
    for name, data in sorted(content.items()):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    folder = home() / digest.hexdigest()[:32]
    if folder.is_dir():
        return folder
    home().mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=home(), suffix=".unfinished"))
    try:
        for name, data in content.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).write_bytes(data)
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # another process was first otherwise
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def read_link(folder: Path) -> dict[str, Any] | None:
    """What the link in the folder says; None for any other folder. Only folders of the cache are believed."""
    file = folder / LINK
    if not file.is_file() or folder.resolve().parent != home().resolve():
        return None
    link: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return link


def home() -> Path:
    """Where the folders are."""
    return cache_folder() / "checkpoints"
