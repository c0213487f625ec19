"""The report of an evaluation: its figures, typed, and the files and fragments made of them."""

from __future__ import annotations

from pathlib import Path

from sdcompress.report.gates import to_junit
from sdcompress.report.html import to_fragment, to_html
from sdcompress.report.markdown import to_markdown
from sdcompress.report.model import ReportData
from sdcompress.report.pictures import draw_sheet
from sdcompress.report.templates import write_json

REPORT_NAME = "report.json"


class Report(ReportData):
    """All that an evaluation found; a notebook shows it as its headline figures and a table.

    Examples:
        >>> report = sdcompress.evaluate("tiny-sd", "out/artifact", "out")  # doctest: +SKIP
        >>> report.change.size_bytes.ratio, report.similarity.psnr_db.mean  # doctest: +SKIP
        (0.508, 54.7)
        >>> report.verdicts["clip_score"].verdict  # doctest: +SKIP
        'within noise'
    """

    def save(self, folder: str | Path) -> None:
        """Write report.json, images.png, report.md, report.html and, for gates, junit.xml.

        Args:
            folder: where the pictures are, in `images/`.
        """
        folder = Path(folder)
        write_json(folder / REPORT_NAME, self.to_dict())
        draw_sheet(self, folder).save(folder / "images.png")
        if self.gates:
            (folder / "junit.xml").write_text(to_junit(self), encoding="utf-8")
        else:
            (folder / "junit.xml").unlink(missing_ok=True)  # of an earlier run with gates
        (folder / "report.md").write_text(to_markdown(self), encoding="utf-8")
        (folder / "report.html").write_text(to_html(self, folder), encoding="utf-8")

    def _repr_html_(self) -> str:
        return to_fragment(self)
