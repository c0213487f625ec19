"""A listener for tests: it keeps the events it is told of, and can interrupt the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sdcompress.progress import ProgressEvent


class Events(list[ProgressEvent]):
    """Keeps the events of one activity ("" for all), and raises KeyboardInterrupt at the first that `stop` picks."""

    def __init__(self, activity: str = "", stop: Callable[[ProgressEvent], bool] = lambda event: False):
        super().__init__()
        self._activity, self._stop = activity, stop

    def __call__(self, event: ProgressEvent) -> None:
        if self._activity in ("", event.activity):
            self.append(event)
            if self._stop(event):
                raise KeyboardInterrupt

    @property
    def counts(self) -> dict[str, int]:
        """Subject -> number of events."""
        return dict(Counter(event.subject for event in self))


def interrupt_writing(component: str) -> Events:
    """Return a listener that interrupts as soon as the component is written."""
    return Events("writing", lambda event: event.subject == component)
