"""Progress of long work: what is reported, and to whom.

Whoever does long work calls one function, the listener, with a `ProgressEvent` whenever something is done. Listeners
are `sdcompress.progress.terminal` (bars on stderr), `sdcompress.progress.notebook` (tqdm.auto) and `silent`; any other
function of one `ProgressEvent` will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Activity = Literal["measuring", "calibrating", "training", "writing", "hashing", "drawing", "scoring", "searching"]
Unit = Literal["bytes", "runs", "steps", "seconds", "pictures"]


@dataclass(frozen=True)
class ProgressEvent:
    """How far one piece of work is. Events of the same activity and subject belong to the same piece.

    Args:
        activity: what is being done.
        subject: what it is done to, such as the name of a component.
        done: how much is done, in `unit`, since the piece of work began. It never falls, unless the same piece is done
            again: a recipe may need several calibration runs.
        total: how much there is to do, in `unit`.
        unit: what `done` and `total` count.
        note: a short text beside the bar, such as the current loss.

    Examples:
        >>> ProgressEvent("calibrating", "unet", done=3, total=20, unit="runs")
        ProgressEvent(activity='calibrating', subject='unet', done=3, total=20, unit='runs', note='')
    """

    activity: Activity
    subject: str
    done: float
    total: float
    unit: Unit
    note: str = ""


Listener = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """Ignore the event: the listener of those who want no progress."""
