"""Reports read from disk: folders or files, told apart by short names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from sdcompress.errors import UserError
from sdcompress.report.model import SCHEMA_VERSION
from sdcompress.report.report import REPORT_NAME, Report


class ReportError(UserError):
    """A report that is missing, damaged, or written by a later version."""


def read_report(path: Path) -> Report:
    """Return the report in a folder or a report.json, of this version or an older one.

    Raises:
        ReportError: what is wrong with it and what to do.
    """
    file = report_file(path)
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{path}: holds no {REPORT_NAME}; give a folder that `evaluate` or `run` wrote") from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{file}: cannot be read as JSON ({error}); evaluate again") from None
    if not isinstance(report, dict) or not isinstance(report.get("schema_version"), int):
        raise ReportError(f"{file}: is no report of sdcompress; give a folder that `evaluate` or `run` wrote")
    if report["schema_version"] > SCHEMA_VERSION:
        raise ReportError(
            f"{file}: has schema {report['schema_version']}, this sdcompress reads up to {SCHEMA_VERSION}; "
            "install a newer version"
        )
    try:
        return Report.model_validate(report)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ReportError(f"{file}: is damaged ({'; '.join(found[:3])}); evaluate again") from None


def read_reports(paths: Sequence[Path]) -> dict[str, Report]:
    """Return label -> report, in the order given. Everything that is wrong is told at once."""
    reports = read_all(paths)
    return dict(zip(label_paths(paths), reports, strict=True))


def read_all(paths: Sequence[Path]) -> list[Report]:
    """Return the reports, in the order given. Everything that is wrong is told at once."""
    reports = []
    problems: list[str] = []
    for path in paths:
        try:
            reports.append(read_report(path))
        except ReportError as error:
            problems += map(str, error.problems)
    if problems:
        raise ReportError(problems)
    return reports


def find_reports(folder: Path) -> list[Path]:
    """Return every report.json under a folder, in the order of their paths. ReportError when there is none."""
    if not folder.is_dir():
        raise ReportError(f"{folder}: is no folder; give one that holds folders of runs")
    found = sorted(folder.rglob(REPORT_NAME))
    if not found:
        raise ReportError(f"{folder}: holds no {REPORT_NAME}, at any depth; run `evaluate` or `run` into it first")
    return found


def report_file(path: Path) -> Path:
    """Return the report.json that a path means: itself, or the one in that folder."""
    return path / REPORT_NAME if path.is_dir() else path


def label_paths(paths: Sequence[Path]) -> list[str]:
    """Return a name for each path: its folder's, with as many parent folders before it as tell it from the others."""
    ends = []
    for path in paths:
        file = report_file(path).absolute()
        # A report that was renamed is told by its own name.
        ends.append(file.parent.parts if file.name == REPORT_NAME else file.parts)
    if len(set(ends)) < len(ends):
        twice = sorted({str(path) for path, end in zip(paths, ends, strict=True) if ends.count(end) > 1})
        raise ReportError(f"{twice[0]}: is given twice; give each report once")
    return list(_shortest(ends))


def _shortest(ends: Sequence[tuple[str, ...]]) -> Iterator[str]:
    for end in ends:
        length = next(
            (count for count in range(1, len(end) + 1) if sum(other[-count:] == end[-count:] for other in ends) == 1),
            len(end),
        )
        yield str(Path(*end[-length:]))
