"""Which progress bars fit where the program runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from sdcompress.progress import Listener, silent

ProgressOption = Listener | Literal["auto"] | None


@contextmanager
def listening(progress: ProgressOption) -> Iterator[Listener]:
    """Yield the listener that a `progress` argument asks for.

    Args:
        progress: a listener; None for silence; "auto" for tqdm bars in a notebook, bars on stderr in a terminal, and
            silence elsewhere.
    """
    if progress is None:
        yield silent
    elif progress != "auto":
        yield progress
    elif in_notebook():
        from sdcompress.progress.notebook import notebook_bars

        with notebook_bars() as listener:
            yield listener
    elif sys.stderr is not None and sys.stderr.isatty():
        from sdcompress.progress.terminal import terminal_bars

        with terminal_bars() as listener:
            yield listener
    else:
        yield silent


def in_notebook() -> bool:
    """Return whether the code runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
