"""The terminal table, the Markdown page and the picture sheet."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont
from rich.console import Console

from sdcompress.report import render, write_report
from sdcompress.report.markdown import to_markdown
from sdcompress.report.pictures import count_columns, draw_sheet, wrap
from sdcompress.report.wording import bytes_text, count_text, findings, ratio_text, seconds_text, signed_text

Make = Callable[..., dict[str, Any]]
Save = Callable[..., None]


def _printed(report: dict[str, Any]) -> str:
    console = Console(width=80, file=io.StringIO())
    render(report, console)
    return console.file.getvalue()


def test_terminal_fits_80_columns_and_names_everything(make_report: Make) -> None:
    text = _printed(make_report())
    assert max(len(line) for line in text.splitlines()) <= 80
    for words in ("original", "compressed", "22.0 M", "44.1 MB", "0.50x", "CLIP score by a judge", "PSNR", "unet"):
        assert words in text
    assert "…" not in text


def test_drift_is_called_by_its_interval(make_report: Make) -> None:
    assert "does not contain 0, the compressed pipeline scores lower" in findings(make_report(drift=-0.5))[0]
    assert "does not contain 0, the compressed pipeline scores higher" in findings(make_report(drift=0.5))[0]
    assert "it contains 0" in findings(make_report(drift=0.0))[0]


def test_what_did_not_improve_is_said(make_report: Make) -> None:
    told = "\n".join(findings(make_report()))
    assert "Improved: size on disk 0.50x, time per picture 0.50x [0.50, 0.50]." in told
    assert "About the same: weights in memory 1.00x, peak memory 1.00x." in told
    assert "Not improved: time to load (one load each) 2.00x." in told


def test_without_a_scorer(make_report: Make) -> None:
    report = make_report(scored=False)
    assert "CLIP score: not measured" in _printed(report)
    assert report["original"]["clip_score"] is None
    assert "Scorer: none." in to_markdown(report)


def test_blocked_pictures_are_told(make_report: Make) -> None:
    assert "Pictures blocked by the safety checker" in "\n".join(findings(make_report(blocked=(1,))))


def test_few_prompts_are_told(make_report: Make) -> None:
    assert "so few prompts (5)" in findings(make_report(count=5))[-1]
    assert "so few prompts" not in "\n".join(findings(make_report(count=6)))


def test_markdown_shows_prompts_as_they_are(make_report: Make) -> None:
    text = to_markdown(make_report())
    assert "prompt number 0 \\| of \\*many\\*" in text
    rows = [line for line in text.splitlines() if line.startswith("| prompt number")]
    assert len(rows) == 4
    assert all("![original](images/original/" in row for row in rows)


def test_everything_is_written(tmp_path: Path, make_report: Make, save_pictures: Save) -> None:
    report = make_report()
    save_pictures(report, tmp_path)
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "report.md").read_text().startswith("# tiny-int8 against tiny\n")
    Image.open(tmp_path / "images.png").verify()


@pytest.mark.parametrize(
    ("size", "shown"), [((64, 64), (192, 192)), ((512, 512), (256, 256)), ((512, 256), (256, 128))]
)
def test_sheet_shows_pictures_at_a_good_size(
    tmp_path: Path,
    size: tuple[int, ...],
    shown: tuple[int, ...],
    make_report: Make,
    save_pictures: Save,
) -> None:
    report = make_report(count=3)
    save_pictures(report, tmp_path, size)
    sheet = np.asarray(draw_sheet(report, tmp_path))
    picture = np.asarray(Image.open(tmp_path / report["samples"][0]["original"]["picture"]))
    corner = picture[0, 0]  # a quarter of the picture has this colour
    rows, columns = np.nonzero((sheet == corner).all(axis=-1))
    assert np.ptp(columns) + 1 == pytest.approx(shown[0] / 2, abs=5)  # smoothing blurs the edges of colours
    assert np.ptp(rows) + 1 == pytest.approx(shown[1] / 2, abs=5)


@pytest.mark.parametrize(("pairs", "columns"), [(1, 1), (6, 6), (8, 8), (9, 5), (12, 6), (16, 8)])
def test_columns(pairs: int, columns: int) -> None:
    assert count_columns(pairs) == columns


def test_wrapped_lines_fit() -> None:
    font = ImageFont.load_default(15)
    for text in ("a short one", "word " * 80, "x" * 300, "", "naïve café 🍎 日本"):
        lines = wrap(text, 120, font)
        assert 1 <= len(lines) <= 4
        assert all(font.getlength(line) <= 120 for line in lines)
    assert wrap("word " * 80, 120, font)[-1].endswith("...")


def test_numbers_read_well() -> None:
    assert count_text(859_520_964) == "859.5 M"
    assert bytes_text(1_719_041_928) == "1.72 GB"
    assert bytes_text(512) == "512 B"
    assert seconds_text(0.0051) == "5.1 ms"
    assert seconds_text(83.21) == "83.2 s"
    assert ratio_text(1.0) == "same"
    assert signed_text(-0.001, [-0.5, 0.004]) == "0.00 [-0.50, 0.00]"
    assert bytes_text(None) == ratio_text(None) == "-"


def test_a_report_needs_no_torch() -> None:
    modules = ("build", "markdown", "pictures", "statistics", "terminal", "wording")
    code = "import sys, sdcompress.evaluation.evaluate;"
    code += "".join(f"import sdcompress.report.{name};" for name in modules)
    subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=True)
