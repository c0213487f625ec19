"""What a process measures of itself: seconds per component, resident and peak memory."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any


class ComponentClock:
    """Seconds each component computed since the last `take`."""

    def __init__(self, device: str):
        self._device = device
        self._spans: list[tuple[str, Any, Any]] = []

    def watch(self, name: str, owner: Any, method: str) -> None:
        """Time every call of owner.method from now on."""
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._mark()
            result = inner(*args, **kwargs)
            self._spans.append((name, start, self._mark()))
            return result

        setattr(owner, method, timed)

    def take(self) -> dict[str, float]:
        """Return component -> seconds over all of its calls, and start again from zero."""
        if self._device == "cuda":
            synchronize(self._device)
        seconds: dict[str, float] = {}
        for name, start, end in self._spans:
            took = start.elapsed_time(end) / 1000 if self._device == "cuda" else end - start
            seconds[name] = seconds.get(name, 0.0) + took
        self._spans.clear()
        return seconds

    def _mark(self) -> Any:
        # Events on CUDA's own queue time a component without making the CPU wait for it.
        if self._device == "cuda":
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        synchronize(self._device)
        return time.perf_counter()


def synchronize(device: str) -> None:
    """Return once the device has done all that was asked of it."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def resident_bytes() -> int:
    """Return the bytes of memory that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int | None:
    """Return the most bytes of memory that this process ever held; None where the system does not say."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux's ru_maxrss survives exec, so a child would inherit its parent's peak; VmHWM starts anew.
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
