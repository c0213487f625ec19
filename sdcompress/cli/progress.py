"""Progress bars on stderr with an estimate of the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sdcompress.progress import Listener, ProgressEvent


@contextmanager
def progress_bars(console: Console, total_bytes: int | None = None) -> Iterator[Listener]:
    """Give a listener that shows events as bars while in the context.

    Args:
        total_bytes: bytes of all subjects together; their bar is shown at once. None: there is no such bar.
    """
    columns = (
        TextColumn("{task.description:<16}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        done: dict[str, float] = {}  # subject -> bytes
        bars = {name: progress.add_task("", total=None, visible=False, amount="") for name in ("runs", "training")}
        bytes_bar = progress.add_task("", total=total_bytes, visible=total_bytes is not None, amount="")

        def show(event: ProgressEvent) -> None:
            text = f"{event.activity} {event.subject}"
            if event.unit == "bytes":
                done[event.subject] = event.done
                shown = int(sum(done.values()))
                amount = f"{decimal(shown)} of {decimal(total_bytes or int(event.total))}"
                text = event.activity if event.activity == "hashing" else event.subject
                text += f": {event.note}" if event.note else ""
                progress.update(bytes_bar, description=text, completed=shown, visible=True, amount=amount)
            else:
                bar = bars["training" if event.activity == "training" else "runs"]
                amount = event.note or f"{event.done:.0f} of {event.total:.0f} {event.unit}"
                progress.update(
                    bar, description=text, completed=event.done, total=event.total, visible=True, amount=amount
                )

        yield show
