"""Many reports compared, and runs over time."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from sdcompress.errors import UserError
from sdcompress.report import Report, ReportError
from sdcompress.report.compare import compare_reports
from sdcompress.report.compare_views import comparison_table, print_comparison, write_comparison
from sdcompress.report.history import print_history, read_history, write_history
from sdcompress.report.read import label_paths, read_reports

Make = Callable[..., Report]
Alter = Callable[..., Report]


@pytest.fixture
def sized(make_report: Make, alter: Alter) -> Callable[..., Report]:
    """Make a report of that size, PSNR and latency."""

    def make(weights_bytes: int, psnr_db: float | None, latency_s: float = 1.0, **more: Any) -> Report:
        changes = {"compressed.weights_bytes": weights_bytes, "compressed.latency_s": latency_s}
        return alter(make_report(), {**changes, "similarity.psnr_db.mean": psnr_db, **more})

    return make


def test_dominated_reports_are_marked(sized: Callable[..., Report]) -> None:
    reports = {
        "small": sized(10, 30.0, 2.0),
        "good": sized(20, 40.0, 1.0),
        "bad": sized(20, 35.0, 3.0),
        "twin": sized(20, 40.0, 1.0),  # equal in both is not dominated
        "unmeasured": sized(5, None),
        "same": sized(44, None, 5.0, **{"similarity.identical": 4}),
    }
    comparison = compare_reports(reports)
    rows = {row.label: row for row in comparison.rows}
    fronts = {label: row.front["weights_bytes"] for label, row in rows.items()}
    assert fronts == {"small": True, "good": True, "bad": False, "twin": True, "unmeasured": None, "same": True}
    assert rows["bad"].dominated_by == {"weights_bytes": "good", "latency_s": "good"}
    assert rows["small"].front["latency_s"] is False and rows["good"].front["latency_s"] is True
    table = comparison_table(comparison).full_rows()
    assert [row[-1] for row in table[:3]] == ["in latency (by good)", "no", "in both (by good)"]
    assert [row[5] for row in table] == ["30.0 dB", "40.0 dB", "35.0 dB", "40.0 dB", "not measured", "identical"]


def test_a_metric_that_is_better_when_lower(sized: Callable[..., Report], alter: Alter) -> None:
    reports = {
        name: alter(sized(size, 1.0), {"metrics.lpips": {"mean": mean, "higher_is_better": False}})
        for name, size, mean in (("a", 10, 0.1), ("b", 20, 0.2))
    }
    rows = compare_reports(reports, "lpips").rows
    assert [row.front["weights_bytes"] for row in rows] == [True, False]
    with pytest.raises(UserError, match="use one of psnr_db, clip_score, ssim, clip_image, lpips"):
        compare_reports(reports, "fid")


@pytest.mark.parametrize(
    ("aspect", "path", "value"),
    [
        ("prompts", "samples.0.prompt", "another"),
        ("seeds", "samples.0.seed", 999),
        ("sampler settings", "settings.guidance_scale", 9.0),
        ("scorers", "scorer.name", "another judge"),
        ("machines", "environment.cpu", "Another CPU"),
        ("originals", "original.parameters", 1),
    ],
)
def test_what_differs_is_named(make_report: Make, alter: Alter, aspect: str, path: str, value: Any) -> None:
    reports = {name: make_report() for name in ("one", "two", "odd")}
    assert compare_reports(reports).warnings == []
    (warning,) = compare_reports({**reports, "odd": alter(reports["odd"], {path: value})}).warnings
    assert warning.aspect == aspect
    assert [group.reports for group in warning.groups] == [["one", "two"], ["odd"]]
    assert str(warning).startswith(f"{aspect} differ: ") and str(warning).endswith("in odd")


def _write(report: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_what_is_no_report_is_told_at_once(make_report: Make, tmp_path: Path) -> None:
    report = make_report().to_dict()
    wrong = {
        "later": (report | {"schema_version": 99}, "install a newer version"),
        "other": ({"schema_version": 1, "tests": []}, "environment: Field required"),
        "bent": (report | {"similarity": {}}, "similarity.pairs: Field required"),
    }
    paths = [_write(report, tmp_path / "good"), *(_write(data, tmp_path / name) for name, (data, _) in wrong.items())]
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "report.json").write_text('{"schema_version": 1, ')
    with pytest.raises(ReportError) as caught:
        read_reports([*paths, tmp_path / "torn", tmp_path / "nowhere"])
    assert caught.value.exit_code == 2 and len(caught.value.problems) == 5
    expected = [*(words for _, words in wrong.values()), "cannot be read", "holds no report.json"]
    for words, line in zip(expected, caught.value.problems, strict=True):
        assert words in str(line)


def test_labels_tell_reports_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "out", tmp_path / "b" / "out" / "report.json", tmp_path / "c", tmp_path / "c" / "x.json"]
    for path in (paths[0], paths[1].parent, paths[2]):
        path.mkdir(parents=True)
    assert label_paths(paths) == [str(Path("a/out")), str(Path("b/out")), "c", "x.json"]
    with pytest.raises(ReportError, match="given twice"):
        label_paths([paths[0], paths[0]])


def test_fifty_reports_have_all_their_views_in_time(sized: Callable[..., Report], tmp_path: Path) -> None:
    name = {"compressed.name": "=HYPERLINK(1)"}
    for number in range(50):
        report = sized(10_000_000 + 7919 * number % 30 * 1_000_000, 20.0 + number * 31 % 29, **name)
        _write(report.to_dict(), tmp_path / f"run{number}")
    started = time.process_time()
    comparison = compare_reports(read_reports([tmp_path / f"run{number}" for number in range(50)]))
    files = write_comparison(comparison, tmp_path / "out")
    assert time.process_time() - started < 5  # of processor time, since tests share machines
    assert [file.name for file in files] == ["compare.json", "compare.csv", "compare.html", "compare.png"]
    assert json.loads(files[0].read_text()) == comparison.to_dict()
    lines = list(csv.DictReader(files[1].open()))
    assert len(lines) == 50 and lines[0]["compressed"] == "'=HYPERLINK(1)"  # a spreadsheet must not run it
    assert Image.open(files[3]).width > 1000
    console = Console(width=80, file=io.StringIO())
    print_comparison(comparison, console, console)
    text = console.file.getvalue()
    assert "run49" in text and max(len(line) for line in text.splitlines()) <= 80


def test_history_is_in_order_of_time(sized: Callable[..., Report], tmp_path: Path) -> None:
    for name, latency_s, hour in (("new", 0.5, 3), ("old", 1.0, 1), ("mid", 2.0, 2)):
        report = sized(10, 40.0, latency_s).to_dict() | {"recipe": {"description": "eight bits"}}
        file = _write(report, tmp_path / "runs" / name) / "report.json"
        os.utime(file, (1_800_000_000 + 3600 * hour,) * 2)
    _write(sized(10, 40.0).to_dict(), tmp_path / "runs" / "deep" / "other")
    history = read_history(tmp_path / "runs")
    eight, other = history.groups
    assert (eight.recipe, other.recipe) == ("eight bits", "tiny-int8")
    assert [run.report for run in eight.runs] == ["old", "mid", "new"]
    assert [run.since_before["latency_s_ratio"] for run in eight.runs] == [None, 2.0, 0.25]
    console = Console(width=100, file=io.StringIO())
    print_history(history, console)
    assert "2027-01-15 09:00:00" in console.file.getvalue()
    files = write_history(history, tmp_path / "out")
    assert json.loads(files[0].read_text()) == history.to_dict()
    assert "Time per picture, run by run" in files[1].read_text()
    (tmp_path / "none").mkdir()
    with pytest.raises(ReportError, match=r"holds no report\.json"):
        read_history(tmp_path / "none")
