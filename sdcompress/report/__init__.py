"""The report of an evaluation, typed, and its views: terminal, Markdown, HTML, picture sheet, JUnit. No torch."""

from sdcompress.report.build import build_report
from sdcompress.report.read import ReportError, read_report
from sdcompress.report.report import Report
from sdcompress.report.terminal import print_report

__all__ = ["Report", "ReportError", "build_report", "print_report", "read_report"]
