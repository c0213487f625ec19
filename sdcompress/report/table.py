"""A table of text that the terminal, Markdown and HTML show alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sdcompress.report.number_text import MISSING

UNMEASURED = "not measured"  # what pages say where there is no figure


class Cell(NamedTuple):
    """A figure as text.

    Attributes:
        interval: its interval, which always stands beside it.
        detail: what is added where there is room, so not on the terminal.
        number: what it sorts by.
    """

    text: str
    interval: str = ""
    detail: str = ""
    number: float | None = None

    @property
    def brief(self) -> str:
        """The text and its interval."""
        return f"{self.text} {self.interval}".rstrip()

    @property
    def full(self) -> str:
        """The text, its interval and its detail, with words where there is no figure."""
        if self.text == MISSING:
            return self.detail or UNMEASURED
        return f"{self.brief} {self.detail}".rstrip()


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns.

    Attributes:
        columns: their names.
        rows: as many cells each as there are columns.
        left: names of the columns that hold text; the others hold numbers.
        title: what it shows.
        note: what its columns mean.
        remarks: sentences about single rows.
        keys: what each row is told apart by.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell | str]]
    left: tuple[str, ...] = ("",)
    title: str = ""
    note: str = ""
    remarks: tuple[str, ...] = ()
    keys: Sequence[int] = ()

    def full_rows(self) -> list[list[str]]:
        """Return every cell's text with its detail."""
        return [[as_cell(cell).full for cell in row] for row in self.rows]

    def to_data(self) -> dict[str, Any]:
        """Return what the script of a page sorts and filters: numbers are [text, number], null sorts last."""
        columns = [{"name": name, "kind": "text" if name in self.left else "number"} for name in self.columns]
        rows: list[dict[str, Any]] = []
        for row in self.rows:
            cells = [as_cell(cell) for cell in row]
            pairs = zip(cells, self.columns, strict=True)
            rows.append({"cells": [c.full if name in self.left else [c.full, c.number] for c, name in pairs]})
        for row_data, key in zip(rows, self.keys, strict=False):
            row_data["key"] = key
        return {"columns": columns, "rows": rows}


def as_cell(cell: Cell | str) -> Cell:
    """Return a text as a cell."""
    return Cell(cell) if isinstance(cell, str) else cell


def rich_table(table: Table) -> Any:
    """Return the table for a terminal, without its details and remarks."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1), show_edge=False, pad_edge=False)
    made.collapse_padding = True  # 80 columns are few
    for place, name in enumerate(table.columns):
        made.add_column(name, justify="left" if name in table.left else "right", no_wrap=not place, overflow="fold")
    for row in table.rows:
        made.add_row(*(Text(as_cell(cell).brief) for cell in row))
    return made


def markdown_table(table: Table) -> list[str]:
    """Return the table's lines, its cells shown exactly as they are."""
    header = [plain(name) for name in table.columns]
    rule = ["---" if name in table.left else "---:" for name in table.columns]
    return [_line(header), _line(rule), *(_line(plain(cell) for cell in row) for row in table.full_rows())]


_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>#!|~&"})


def plain(text: str) -> str:
    """Return the text as Markdown that shows exactly it: prompts and names may hold anything."""
    return " ".join(text.split()).translate(_SPECIAL)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
