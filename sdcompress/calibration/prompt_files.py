"""Prompts from a user's file: plain text, or a layout in which known prompt sets are published."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from sdcompress.calibration.prompts import PromptSet
from sdcompress.errors import EvaluationError

COLUMNS = ("prompt", "prompts", "caption", "text")  # in this order, whatever their case

_TABLES = {".csv": ",", ".tsv": "\t"}


def read_prompts(file: Path) -> PromptSet:
    """Return the prompts of a UTF-8 file, in its order and without empty ones.

    The ending tells the layout: CSV or TSV with a header (PartiPrompts, DrawBench), JSON lines with a `prompt`
    (GenEval's metadata), JSON (COCO's `annotations` with captions, or a list of texts or objects), else one prompt on
    each line.

    Raises:
        EvaluationError: the file cannot be read, or holds no prompt.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"--prompts: {file} cannot be read ({error}); give a UTF-8 text, CSV, TSV, JSON or JSON lines file"
        raise EvaluationError(problem) from None
    kind = file.suffix.lower()
    if kind in _TABLES:
        found = _from_table(text, _TABLES[kind], file)
    elif kind == ".jsonl":
        found = _from_json_lines(text, file)
    elif kind == ".json":
        found = _from_json(text, file)
    else:
        found = text.splitlines()
    prompts = tuple(prompt.strip() for prompt in found if prompt.strip())
    if not prompts:
        raise EvaluationError(f"--prompts: {file} holds no prompt; write one on each line")
    return PromptSet(file.name, prompts, default_count=len(prompts))


def _from_table(text: str, delimiter: str, file: Path) -> list[str]:
    # PartiPrompts has lone quotation marks inside its cells, which tab-separated files do not quote.
    stream = io.StringIO(text, newline="")
    rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE) if delimiter == "\t" else csv.reader(stream)
    header = next(rows, [])
    names = [name.strip().lower() for name in header]
    column = next((names.index(name) for name in COLUMNS if name in names), None)
    if column is None:
        raise EvaluationError(
            f"--prompts: {file} has no column named {' or '.join(COLUMNS)} (its first line names "
            f"{', '.join(header) or 'nothing'}); name the column so, or give one prompt a line in a .txt file"
        )
    return [row[column] for row in rows if len(row) > column]


def _from_json_lines(text: str, file: Path) -> list[str]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            found.append(_prompt_of(_parse(line, f"{file}, line {number}"), f"{file}, line {number}"))
    return found


def _from_json(text: str, file: Path) -> list[str]:
    value = _parse(text, str(file))
    if isinstance(value, dict) and isinstance(value.get("annotations"), list):
        value = value["annotations"]  # COCO's captions_*.json
    if not isinstance(value, list):
        raise EvaluationError(f"--prompts: {file} is neither a list nor COCO captions (an object with `annotations`)")
    return [_prompt_of(entry, f"{file}, entry {number}") for number, entry in enumerate(value, start=1)]


def _prompt_of(entry: Any, where: str) -> str:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, dict):
        name = next((name for name in COLUMNS if isinstance(entry.get(name), str)), None)
        if name is not None:
            return str(entry[name])
    raise EvaluationError(f"--prompts: {where}: is neither a text nor an object with {' or '.join(COLUMNS)}")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise EvaluationError(f"--prompts: {where}: is not valid JSON ({error})") from None
