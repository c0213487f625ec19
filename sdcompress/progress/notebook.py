"""Progress bars in a notebook, drawn by `tqdm.auto`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sdcompress.progress import Listener, ProgressEvent

if TYPE_CHECKING:
    from sdcompress.progress import Activity


@contextmanager
def notebook_bars() -> Iterator[Listener]:
    """Yield a listener that shows one bar for each activity while the context lasts."""
    from tqdm.auto import tqdm

    bars: dict[Activity, Any] = {}

    def show(event: ProgressEvent) -> None:
        if event.activity not in bars:
            bars[event.activity] = tqdm(unit=event.unit, unit_scale=event.unit == "bytes")
        bar = bars[event.activity]
        bar.set_description(f"{event.activity} {event.subject}".strip(), refresh=False)
        bar.set_postfix_str(event.note, refresh=False)
        bar.total, bar.n = event.total, event.done
        bar.refresh()

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()
