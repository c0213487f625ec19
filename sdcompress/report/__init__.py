"""The report of an evaluation, typed, and its views: terminal, Markdown, HTML, picture sheet, JUnit. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdcompress.report.build import build_report
    from sdcompress.report.read import ReportError, read_report
    from sdcompress.report.report import Report
    from sdcompress.report.terminal import print_report

__all__ = ["Report", "ReportError", "build_report", "print_report", "read_report"]

_HOMES = {"Report": "report", "build_report": "build", "print_report": "terminal"}  # all else is in `read`


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the views of plans and models need no report."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'read')}"), name)
