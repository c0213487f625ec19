"""The artifact folder: writing it, publishing it in one rename, and checking that its files are those it lists."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdcompress.errors import ArtifactError
from sdcompress.files.manifest import MANIFEST_NAME, FileEntry, Manifest, read_manifest_json
from sdcompress.progress import Listener, ProgressEvent, silent

_BLOCK = 2**22


def partial_folder(out: Path) -> Path:
    """Return the folder that an artifact is written to until it is whole."""
    return out.with_name(out.name + ".partial")


def check_output(out: Path, *, resume: bool, force: bool) -> None:
    """Check that an artifact can be written to `out`.

    Raises:
        ArtifactError: `out` or its `.partial` folder exists, and neither `force` nor `resume` says what to do with it.
    """
    if any(folder.exists() and not folder.is_dir() for folder in out.parents):
        raise ArtifactError(f"{out}: lies under a file, not a folder; choose another --out")
    if out.exists() and not force:
        raise ArtifactError(f"{out}: exists already; choose another --out, or --force to replace it")
    if out.exists() and not (out.is_dir() and ((out / MANIFEST_NAME).exists() or not any(out.iterdir()))):
        raise ArtifactError(f"{out}: is no artifact of sdcompress, so --force does not replace it; remove it yourself")
    if partial_folder(out).exists() and not (resume or force):
        raise ArtifactError(
            f"{partial_folder(out)}: an interrupted run left this; --resume continues it, --force starts anew"
        )


def publish(partial: Path, out: Path) -> None:
    """Rename the finished folder to `out`. What was there before is deleted once the new folder is in place."""
    old = out.with_name(out.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write or replace files of an artifact, and list them in its manifest.

    The folder is replaced as a whole, so that it is never half old and half new. Other files are linked, or copied
    where the disk has no links.

    Args:
        contents: path in the folder -> new content.
    """
    folder = folder.resolve()
    manifest = read_manifest_json(folder)
    changed = folder.with_name(folder.name + ".changed")
    try:
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(folder, changed, copy_function=_link_file)
        for name, content in contents.items():
            file = changed / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)  # writing into a link would change the old folder too
            file.write_bytes(content)
            manifest["files"][name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["files"] = dict(sorted(manifest["files"].items()))
        write_json(changed / MANIFEST_NAME, manifest)
        publish(changed, folder)
    except OSError as error:
        shutil.rmtree(changed, ignore_errors=True)
        raise ArtifactError(f"{error.filename or folder}: cannot be written ({error.strerror})") from None


def link_folder(source: Path, target: Path) -> None:
    """Makes `target` a link to the folder `source`, or a copy of it where links are not allowed."""
    try:
        os.symlink(source.resolve(), target, target_is_directory=True)
    except (OSError, NotImplementedError):  # Windows lets few users make links
        shutil.copytree(source, target)


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # no links on this kind of disk
        shutil.copy2(source, target)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write the value as JSON, the whole file or nothing of it."""
    temporary = file.with_name(file.name + ".new")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def sha256_of(file: Path) -> str:
    """Return the file's SHA-256 as hexadecimal digits."""
    digest = hashlib.sha256()
    for block in _blocks(file):
        digest.update(block)
    return digest.hexdigest()


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Return path -> size and hash of every file in the folder, sorted by path."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): FileEntry(size_bytes=file.stat().st_size, sha256=sha256_of(file))
        for file in files
    }


def file_problems(folder: Path, manifest: Manifest, listener: Listener = silent) -> list[str]:
    """Return a line for each file that is missing, not listed, or of another size or hash than the manifest says."""
    problems = []
    done = 0
    for name, entry in manifest.files.items():
        file = folder / name
        if not file.is_file():
            problems.append(f"{file}: missing")
        elif file.stat().st_size != entry.size_bytes:
            problems.append(f"{file}: has {file.stat().st_size:,} bytes, the manifest says {entry.size_bytes:,}")
        else:
            digest = hashlib.sha256()
            for block in _blocks(file):
                digest.update(block)
                done += len(block)
                listener(ProgressEvent("hashing", folder.name, done, manifest.size_bytes, "bytes"))
            if digest.hexdigest() != entry.sha256:
                problems.append(f"{file}: its SHA-256 is not the manifest's")
    present = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    unlisted = sorted(present - set(manifest.files) - {MANIFEST_NAME})
    return problems + [f"{folder / name}: is not in the manifest" for name in unlisted]


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            yield block
