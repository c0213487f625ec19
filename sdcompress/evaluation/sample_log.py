"""The sample log of an evaluation: one JSON line per record, written at once, so that a rerun continues."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from sdcompress.errors import EvaluationError
from sdcompress.evaluation.samples import Entry, Record, parse_record

NAME = "samples.jsonl"
# All that an evaluation writes, or wrote in earlier versions; --force removes these and nothing else.
WRITTEN = (
    NAME, "images", "logs", "report.json", "report.md", "report.html", "images.png", "junit.xml", "recording.pt",
    "swapped-steps", "rungs",
)  # fmt: skip

AnyRecord = TypeVar("AnyRecord", bound=Entry)


class SampleLog:
    """`samples.jsonl` in `out`: a header that says what is sampled, then records. Use it as a context manager.

    Args:
        out: the folder of the evaluation.
        header: what the samples depend on; a log with another header is not continued.
        force: whether to remove an earlier evaluation.
        inside: the pipelines' folders, which may be in `out` before an evaluation is.

    Raises:
        EvaluationError: the folder cannot be written, or holds something else.
    """

    def __init__(self, out: Path, header: Mapping[str, Any], force: bool = False, inside: Sequence[Path] = ()):
        self.records: list[Record] = []
        self._file = out / NAME
        digest = fingerprint(header)
        if out.exists() and not out.is_dir():
            raise EvaluationError(f"--out: {out} is a file; give a folder")
        if force:
            for name in WRITTEN:
                _remove(out / name)
        elif not self._file.exists() and _other_entries(out, inside):
            raise EvaluationError(f"--out: {out} exists and holds no evaluation; give another folder, or use --force")
        try:
            out.mkdir(parents=True, exist_ok=True)
            if self._file.exists():
                self._read(digest, header)
            self._stream = self._file.open("a", encoding="utf-8")
        except OSError as error:
            raise EvaluationError(f"--out: {out} cannot be written ({error.strerror}); give another folder") from None
        if not self._file.stat().st_size:
            self._write({"kind": "header", "schema_version": 1, "sha256": digest, "header": header})

    def append(self, record: Record) -> None:
        """Keep a record. It is on disk when this returns."""
        self._write(record.to_json())
        self.records.append(record)

    def of(self, kind: type[AnyRecord]) -> list[AnyRecord]:
        """Return the records of one class, oldest first."""
        return [record for record in self.records if isinstance(record, kind)]

    def __enter__(self) -> SampleLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stream.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            self._stream.write(json.dumps(record, allow_nan=False) + "\n")
            self._stream.flush()
        except OSError as error:
            raise EvaluationError(
                f"{self._file}: cannot be written ({error.strerror}); make room and run the same command again, "
                f"finished pictures are kept"
            ) from None

    def _read(self, digest: str, header: Mapping[str, Any]) -> None:
        content = self._file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # killed in the middle of a line
            self._file.write_bytes(whole)
        if not whole:
            return
        try:
            first, *rest = (json.loads(line) for line in whole.splitlines())
            found, stored = first["sha256"], first["header"]
            records = [parse_record(values) for values in rest]
        except (ValueError, KeyError, TypeError):
            raise EvaluationError(f"{self._file}: is not a sample log; use another --out, or --force") from None
        if found != digest:
            raise EvaluationError(
                f"--out: {self._file.parent} holds an evaluation with other {_difference(stored, header)}; "
                f"use another --out, or --force to start it again"
            )
        self.records = records


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _other_entries(out: Path, inside: Sequence[Path]) -> list[Path]:
    """Return what is in `out` and neither is nor holds one of the folders `inside`."""
    known = {place.resolve() for folder in inside for place in (folder, *folder.parents)}
    return [entry for entry in out.iterdir() if entry.resolve() not in known] if out.is_dir() else []


def _difference(stored: Mapping[str, Any], header: Mapping[str, Any]) -> str:
    names = sorted(name for name in {*stored, *header} if stored.get(name) != header.get(name))
    return ", ".join(names) or "settings"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
