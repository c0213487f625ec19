"""The cached folder of a checkpoint: the small files of its diffusers pipeline, and the path of the checkpoint.

Opening the folder gives the pipeline, whose weights are read from the checkpoint, so that no weight is stored twice.
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

CHECKPOINT_FILE = "checkpoint.json"  # path of the checkpoint, and the options it is opened with


def write_checkpoint_folder(files: Mapping[str, bytes], checkpoint: Mapping[str, Any]) -> Path:
    """Return the cached folder with these files. It is made unless there is one with the same content.

    Args:
        files: path in the folder -> content.
        checkpoint: path, size and options of the checkpoint.
    """
    content = {**files, CHECKPOINT_FILE: json.dumps(checkpoint, indent=2, sort_keys=True).encode()}
    digest = hashlib.sha256()
    for name, data in sorted(content.items()):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    folder = checkpoints_folder() / digest.hexdigest()[:32]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".unfinished"))
    try:
        for name, data in content.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).write_bytes(data)
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process made it first
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def read_checkpoint_folder(folder: Path) -> dict[str, Any] | None:
    """Return path, size and options of the folder's checkpoint; None if the folder is not one of the cache."""
    file = folder / CHECKPOINT_FILE
    if not file.is_file() or folder.resolve().parent != checkpoints_folder().resolve():
        return None
    checkpoint: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return checkpoint


def checkpoints_folder() -> Path:
    """Return the folder of the cache that holds the folders of checkpoints."""
    return cache_folder() / "checkpoints"
