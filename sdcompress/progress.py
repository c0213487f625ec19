"""Progress bars on stderr with an estimate of the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def byte_progress(total_bytes: int, console: Console) -> Iterator[Callable[[str, int], None]]:
    """A function that takes what is being worked on and the bytes just done, shown as a bar while in the context."""
    columns = (
        TextColumn("{task.description:<16}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total_bytes)

        def advance(what: str, size_bytes: int) -> None:
            progress.update(task, description=what, advance=size_bytes)

        yield advance
