"""The tables and findings of a report, on the terminal, in Markdown and on the picture sheet."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from rich.console import Console

from sdcompress.report import Report, print_report
from sdcompress.report.findings import findings
from sdcompress.report.layers import format_table, layer_table
from sdcompress.report.markdown import to_markdown
from sdcompress.report.number_text import bytes_text, count_text, interval_text, ratio_text, seconds_text, signed_text
from sdcompress.report.pictures import count_columns, draw_sheet, wrap
from sdcompress.report.tables import attribution_table, pipeline_table, quality_table, step_table

Make = Callable[..., Report]
Save = Callable[..., None]


def _printed(report: Report) -> str:
    console = Console(width=80, file=io.StringIO())
    print_report(report, console)
    return console.file.getvalue()


def test_terminal_fits_80_columns_and_cuts_nothing(make_report: Make) -> None:
    text = _printed(make_report(whole=True))
    assert max(len(line) for line in text.splitlines()) <= 80 and "…" not in text
    for words in ("22.0 M", "44.1 MB", "0.50x", "CLIP drift", "+ recover", "FAILED", "uint4/64+scale8, gptq"):
        assert words in text


def test_the_pipeline_s_verdicts(make_report: Make) -> None:
    rows = {row[0]: row[1:] for row in pipeline_table(make_report(whole=True)).full_rows()}
    assert rows["size on disk"] == ["44.1 MB", "22.1 MB", "0.50x", "better"]
    assert rows["time per picture"] == ["1.15 s", "0.57 s", "0.50x [0.50, 0.50]", "better"]
    assert rows["time to load"][-1] == "worse" and rows["parameters"][2:] == ["same", ""]
    assert rows["CLIP score"] == ["31.50", "31.00", "-0.50 [-0.60, -0.40]", "worse"]


def test_quality_stands_beside_its_noise_floor(make_report: Make) -> None:
    table = quality_table(make_report(whole=True))
    assert table.columns == ("", "compressed", "another seed", "in bfloat16", "verdict")
    rows = {row[0]: row[1:] for row in table.full_rows()}
    assert rows["PSNR"] == ["41.5 [40.0, 43.0]", "15.8 [15.0, 16.5]", "50.8 [50.0, 51.5]", "worse"]
    assert rows["CMMD"] == ["0.250 over 4 pictures", "0.500", "not measured", "not judged"]
    assert rows["FID"][-1] == "unreliable"


def test_attribution_and_its_steps(make_report: Make) -> None:
    report = make_report(whole=True)
    assert [row[:3] + row[-1:] for row in attribution_table(report).full_rows()] == [
        ["unet", "20 MB", "41.8 [41.0, 42.5]", "worse (CLIP drift, PSNR)"],
        ["vae", "2 MB", "identical", "within noise"],
    ]
    table = step_table(report)
    assert [row[:4] for row in table.full_rows()[1:]] == [
        ["+ prune", "4 MB (36 MB left)", "45.8 [45.0, 46.5]", "from identical"],
        ["+ recover", "0 B (36 MB left)", "not measured", "not measured"],
        ["+ cast", "16 MB (20 MB left)", "41.8 [41.0, 42.5]", "-4.0 [-4.0, -4.0]"],
    ]
    assert table.remarks == (
        "unet after prune: weights alone.",
        "unet after recover: not measured: it would have to be trained again.",
        "unet after cast: its gain is that of recover and cast together.",
        "Steps were not measured one by one: its steps are not known.",
    )


def test_layers_by_format_and_one_by_one(make_report: Make, alter: Callable[..., Report]) -> None:
    """Bits are over parameters: two layers of 9 M each, of 4.25 and 4.75 bits. Medians of 20.5 and 21.5 are 21."""
    report = make_report()
    assert [[str(cell) for cell in row] for row in format_table(report).full_rows()] == [
        ["unet", "uint4/64+scale8, gptq", "2 (18.0 M)", "4.50", "21.0 (20.5)", "26.5 (25.8)"],
        ["unet", "left alone: sensitive layer conv_in (keep_sensitive)", "1 (2.0 M)", *["not measured"] * 3],
        ["vae", "int8", "1 (2.0 M)", "8.00", "42.0 (42.0)", "not measured"],
    ]
    assert len(format_table(report, kept=False).rows) == 2
    rows = layer_table(report.compressed.layers).full_rows()
    assert [row[0] for row in rows] == ["unet.a.conv2", "unet.a.conv1", "vae.conv", "unet.conv_in"]  # worst first
    active = alter(report, {"compressed.layers.3.activations": "int8"})
    assert format_table(active).full_rows()[2][1] == "int8, 8-bit activations"
    assert "## Formats" in to_markdown(report) and "## Formats" not in to_markdown(
        alter(report, {"compressed.layers": []})
    )


def test_findings_say_what_was_lost_as_plainly_as_what_was_gained(
    make_report: Make, alter: Callable[..., Report]
) -> None:
    report = alter(make_report(count=5, blocked=(1,)), {"change.peak_memory_bytes.ratio": 1.01})
    told = "\n".join(findings(report))
    assert "4 pairs: worse, since" in told and "does not contain 0" in told
    assert "Improved: size on disk 0.50x, weights on disk 0.50x, time per picture 0.50x [0.50, 0.50]." in told
    assert "About the same: peak memory 1.01x." in told
    assert "Not improved: time to load 2.00x." in told
    assert "Pictures blocked by the safety checker" in told and "so few prompts (5)" in told
    assert "so few prompts" not in "\n".join(findings(make_report(count=6)))
    assert "better, since" in findings(make_report(drift=0.5))[0]
    assert "within noise, since" in findings(make_report(drift=0.0))[0]
    whole = "\n".join(findings(make_report(whole=True)))
    assert "PSNR is worse: further from the original" in whole and "FID is unreliable" in whole
    unlike = alter(make_report(), {"similarity.identical_latents": False, "similarity.pairs_of_unlike_size": 1})
    assert sum(line.startswith("Note:") for line in findings(unlike)) == 3
    assert "CLIP score: not measured" in _printed(make_report(scored=False))


def test_markdown_shows_prompts_as_they_are(make_report: Make) -> None:
    text = to_markdown(make_report(scored=False))
    assert "Scorer: none." in text and "prompt number 0 \\| of \\*many\\*" in text
    rows = [line for line in text.splitlines() if line.startswith("| prompt number")]
    assert len(rows) == 4 and all("![original](images/original/" in row for row in rows)


def test_everything_is_saved(
    tmp_path: Path, make_report: Make, save_pictures: Save, alter: Callable[..., Report]
) -> None:
    report = make_report(whole=True)
    save_pictures(report, tmp_path)
    report.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report.to_dict()
    assert (tmp_path / "report.md").read_text().startswith("# tiny-int8 against tiny\n")
    Image.open(tmp_path / "images.png").verify()
    assert {file.name for file in tmp_path.glob("*.*")} == {
        "report.json", "report.md", "report.html", "images.png", "junit.xml"
    }  # fmt: skip
    alter(report, {"gates": []}).save(tmp_path)
    assert not (tmp_path / "junit.xml").exists()


@pytest.mark.parametrize(
    ("size", "shown"), [((64, 64), (192, 192)), ((512, 512), (256, 256)), ((512, 256), (256, 128))]
)
def test_sheet_shows_pictures_at_a_good_size(
    tmp_path: Path, size: tuple[int, ...], shown: tuple[int, ...], make_report: Make, save_pictures: Save
) -> None:
    report = make_report(count=3)
    save_pictures(report, tmp_path, size)
    sheet = np.asarray(draw_sheet(report, tmp_path))
    corner = np.asarray(Image.open(tmp_path / report.samples[0].original.picture))[0, 0]  # the colour of a quarter
    rows, columns = np.nonzero((sheet == corner).all(axis=-1))
    assert np.ptp(columns) + 1 == pytest.approx(shown[0] / 2, abs=5)  # smoothing blurs the edges of colours
    assert np.ptp(rows) + 1 == pytest.approx(shown[1] / 2, abs=5)
    assert [count_columns(pairs) for pairs in (1, 6, 8, 9, 12, 16)] == [1, 6, 8, 5, 6, 8]


def test_wrapped_lines_fit() -> None:
    font = ImageFont.load_default(15)
    for text in ("a short one", "word " * 80, "x" * 300, "", "naïve café 🍎 日本"):
        lines = wrap(text, 120, font)
        assert 1 <= len(lines) <= 4 and all(font.getlength(line) <= 120 for line in lines)
    assert wrap("word " * 80, 120, font)[-1].endswith("...")


def test_numbers_read_well() -> None:
    assert count_text(859_520_964) == "859.5 M"
    assert [bytes_text(size) for size in (1_719_041_928, 512)] == ["1.72 GB", "512 B"]
    assert [seconds_text(value) for value in (0.0051, 83.21)] == ["5.1 ms", "83.2 s"]
    assert ratio_text(1.0) == "same"
    assert interval_text([-0.5, 0.004], signed_text) == "[-0.50, 0.00]"
    assert bytes_text(None) == ratio_text(None) == signed_text(None) == "-"


def test_a_report_needs_no_torch() -> None:
    modules = ("compare_views", "conversion", "doctor_view", "graph_view", "history", "inspect_table", "measured_card")
    code = "import sys, sdcompress.report, sdcompress.evaluation.evaluate, scipy.stats;"
    code += "".join(f"import sdcompress.report.{name};" for name in (*modules, "tracking"))
    heavy = "sorted({'torch', 'onnxruntime', 'bitsandbytes', 'sdcompress.backends.doctor'} & set(sys.modules))"
    subprocess.run([sys.executable, "-c", f"{code} sys.exit({heavy} or 0)"], check=True)
