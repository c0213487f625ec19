"""Progress bars in a terminal, with an estimate of the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sdcompress.progress import Listener, ProgressEvent

if TYPE_CHECKING:
    from sdcompress.progress import Activity


@contextmanager
def terminal_bars(console: Console | None = None) -> Iterator[Listener]:
    """Yield a listener that shows one bar for each activity while the context lasts.

    Args:
        console: where the bars go; stderr by default, so that stdout holds results alone.
    """
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bars: dict[Activity, TaskID] = {}
    with Progress(*columns, console=console or Console(stderr=True)) as progress:

        def show(event: ProgressEvent) -> None:
            description = f"{event.activity} {event.subject}".strip()
            if event.activity not in bars:
                bars[event.activity] = progress.add_task(description, total=event.total, amount="")
            progress.update(
                bars[event.activity],
                description=description,
                completed=event.done,
                total=event.total,
                amount=event.note or describe_amount(event),
            )

        yield show


def describe_amount(event: ProgressEvent) -> str:
    """Return how much is done, in words.

    Examples:
        >>> describe_amount(ProgressEvent("calibrating", "unet", done=3, total=20, unit="runs"))
        '3 of 20 runs'
    """
    if event.unit == "bytes":
        return f"{decimal(int(event.done))} of {decimal(int(event.total))}"
    return f"{event.done:.0f} of {event.total:.0f} {event.unit}"
