"""Progress bars on stderr with an estimate of the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bars:
    """One bar of bytes, and others of pictures' steps and of training where there are such."""

    def __init__(self, progress: Progress, total_bytes: int):
        self._progress, self._total_bytes, self._done_bytes = progress, total_bytes, 0
        self._steps = progress.add_task("", total=None, visible=False, amount="")
        self._training = progress.add_task("", total=None, visible=False, amount="")
        self._bytes = progress.add_task("", total=total_bytes, amount="")

    def advance(self, what: str, size_bytes: int) -> None:
        """Shows what is being worked on, and that many bytes more as done."""
        self._done_bytes += size_bytes
        amount = f"{decimal(self._done_bytes)} of {decimal(self._total_bytes)}"
        self._progress.update(self._bytes, description=what, advance=size_bytes, amount=amount)

    def calibrating(self, what: str, done: int, total: int) -> None:
        """Shows how many of the runs that calibrate activations are done."""
        self._progress.update(
            self._steps, description=f"calibrating {what}", completed=done, total=total, visible=True,
            amount=f"{done} of {total} runs",
        )  # fmt: skip

    def training(self, what: str, done: float, total: float, said: str) -> None:
        """Shows how much of a training run is done, and what is said about it."""
        self._progress.update(
            self._training, description=f"training {what}", completed=done, total=total, visible=True, amount=said
        )


@contextmanager
def step_progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows how many of the runs that measure a component are done; no bar until it is called."""
    columns = (TextColumn("{task.description:<16}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=None, visible=False)

        def measuring(what: str, done: int, total: int) -> None:
            progress.update(bar, description=f"measuring {what}", completed=done, total=total, visible=True)

        yield measuring


@contextmanager
def byte_progress(total_bytes: int, console: Console) -> Iterator[Bars]:
    """Bars that are shown while in the context."""
    columns = (
        TextColumn("{task.description:<16}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield Bars(progress, total_bytes)
