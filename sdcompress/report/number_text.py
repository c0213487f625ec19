"""Numbers as text, with their units: what every view of a report writes them by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

MISSING = "-"


def count_text(value: float | None) -> str:
    """Return a count, such as 859.5 M."""
    if value is None:
        return MISSING
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def bytes_text(size_bytes: float | None) -> str:
    """Return a size in decimal units, such as 512 B, 41.3 MB or 1.72 GB."""
    if size_bytes is None:
        return MISSING
    if abs(size_bytes) < 1000:
        return f"{size_bytes:.0f} B"
    size = float(size_bytes)
    for unit in ("kB", "MB"):
        size /= 1000
        if abs(size) < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:,.2f} GB"


def seconds_text(value: float | None) -> str:
    """Return a duration, such as 12.3 s, 0.84 s or 5.1 ms."""
    if value is None:
        return MISSING
    if value < 0.1:
        return f"{1000 * value:.1f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def joules_text(value: float | None) -> str:
    """Return an energy, such as 42.1 J."""
    return MISSING if value is None else f"{value:.3g} J"


def ratio_text(ratio: float | None) -> str:
    """Return a ratio of compressed to original, such as 0.51x."""
    return MISSING if ratio is None else "same" if ratio == 1 else f"{ratio:.2f}x"


def number_text(value: float | None, digits: int = 2) -> str:
    """Return a number, such as 0.99."""
    return MISSING if value is None else f"{value:.{digits}f}"


def signed_text(value: float | None, digits: int = 2) -> str:
    """Return a difference, such as +0.12."""
    if value is None:
        return MISSING
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def interval_text(interval: Sequence[float] | None, text: Callable[[float, int], str], digits: int = 2) -> str:
    """Return an interval whose bounds are written by `text`, such as [0.98, 1.00]; nothing for None."""
    return f"[{text(interval[0], digits)}, {text(interval[1], digits)}]" if interval else ""
