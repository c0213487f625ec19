"""The artifact folder: its manifest, its publication in one rename, and the check that it still holds what it said."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdcompress.errors import ArtifactError

MANIFEST_NAME = "sdcompress.json"
MANIFEST_SCHEMA = 1
_BLOCK = 2**22


def partial_folder(out: Path) -> Path:
    """Where an artifact is written until it is whole."""
    return out.with_name(out.name + ".partial")


def check_output(out: Path, *, resume: bool, force: bool) -> None:
    """Raises ArtifactError when `out` or its `.partial` is in the way and neither --force nor --resume settles it."""
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
    """Renames the finished folder to `out`; what stood there before goes only when the new one is in place."""
    old = out.with_name(out.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(partial, out)
    shutil.rmtree(old, ignore_errors=True)


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Publishes the artifact anew with these files written or replaced, and its manifest to match.

    All else is linked, not copied, where the disk can; the folder is whole, old or new, whenever the process dies.
    """
    folder = folder.resolve()
    manifest = read_manifest(folder)
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
    """Writes the file whole or not at all."""
    temporary = file.with_name(file.name + ".new")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def sha256_of(file: Path, advance: Callable[[int], None] | None = None) -> str:
    """The file's SHA-256 as hexadecimal; `advance` is told the bytes read."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            if advance:
                advance(len(block))
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The artifact's manifest. ArtifactError when the folder has none or it is of a later schema."""
    file = folder / MANIFEST_NAME
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: is no artifact of sdcompress (it has no {MANIFEST_NAME})") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error}); compress the model again") from None
    if not isinstance(manifest, dict) or manifest.get("schema_version", 0) > MANIFEST_SCHEMA:
        raise ArtifactError(f"{file}: is of a later sdcompress; install a newer version")
    return manifest


def made_with(folder: Path | None) -> dict[str, Any]:
    """What an artifact's manifest adds to a report: its recipe, and its losses while recovering where it has them."""
    if folder is None or not (folder / MANIFEST_NAME).is_file():
        return {}
    manifest = read_manifest(folder)
    recovery = {
        component: entry["recovery"] for component, entry in manifest["components"].items() if entry.get("recovery")
    }
    return {"recipe": manifest["recipe"], **({"recovery": recovery} if recovery else {})}


def file_problems(folder: Path, manifest: Mapping[str, Any], advance: Callable[[int], None] | None = None) -> list[str]:
    """Every file that is missing, foreign, or not what the manifest's size and hash say."""
    problems = []
    listed = manifest["files"]
    for name, entry in listed.items():
        file = folder / name
        if not file.is_file():
            problems.append(f"{file}: missing")
        elif file.stat().st_size != entry["size_bytes"]:
            problems.append(f"{file}: has {file.stat().st_size:,} bytes, the manifest says {entry['size_bytes']:,}")
        elif sha256_of(file, advance) != entry["sha256"]:
            problems.append(f"{file}: its SHA-256 is not the manifest's")
    present = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    problems += [f"{folder / name}: is not in the manifest" for name in sorted(present - set(listed) - {MANIFEST_NAME})]
    return problems
