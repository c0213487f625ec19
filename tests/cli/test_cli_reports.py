"""The commands about reports as a user runs them: what they print, what they write, how they fail."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import refused, sdcompress

REPORT = Path(__file__).parents[1] / "report" / "report_schema_1.json"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs that differ in size and PSNR; the third on another machine."""
    folder = tmp_path_factory.mktemp("runs")
    for number, (size_bytes, psnr_db) in enumerate(((10, 30.0), (20, 40.0), (20, 35.0))):
        run = folder / f"run{number}"
        run.mkdir()
        report = json.loads(REPORT.read_text())
        report["compressed"]["weights_bytes"], report["similarity"]["psnr_db"]["mean"] = size_bytes, psnr_db
        report["environment"]["cpu"] = "B" if number == 2 else "A"
        (run / "report.json").write_text(json.dumps(report))
    return folder


def test_compare_prints_warns_and_writes(runs: Path, tmp_path: Path) -> None:
    result = sdcompress("compare", *sorted(runs.iterdir()), "--out", tmp_path / "out", env={"COLUMNS": "100"})
    assert result.returncode == 0, result.stderr
    assert "machines differ" in result.stderr and "run2" in result.stderr
    assert "run1" in result.stdout and "40.0 dB" in result.stdout and "in both" in result.stdout
    names = {"compare.json", "compare.csv", "compare.html", "compare.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names


def test_machines_get_json_alone_on_stdout(runs: Path, tmp_path: Path) -> None:
    paths = sorted(runs.iterdir())
    compared = json.loads(sdcompress("compare", *paths, "--json", "--out", tmp_path / "out").stdout)
    assert [row["front"]["weights_bytes"] for row in compared["rows"]] == [True, True, False]
    history = json.loads(sdcompress("history", runs, "--json").stdout)
    assert len(history["groups"][0]["runs"]) == 3


def test_what_is_wrong_exits_with_2(runs: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("compare", tmp_path / "none"), "holds no report.json"),
        (("compare", runs / "run0", "--metric", "beauty"), "use one of psnr_db, clip_score, ssim"),
        (("history", tmp_path), "holds no report.json"),
        (("card", tmp_path, runs / "run0"), "is no artifact of sdcompress"),
        (("card", tmp_path, tmp_path / "none"), "holds no report.json"),
        (("evaluate", "a", "b", "--out", tmp_path / "o", "--log-to", "elsewhere"), "use one of mlflow, wandb"),
    ):
        refused(*arguments, says=words)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell the times of children")
def test_fifty_reports_in_time(runs: Path, tmp_path: Path) -> None:
    """Issue 6: under 5 s, start and pictures included; of processor time, since tests share machines."""
    text = (runs / "run0" / "report.json").read_text()
    for number in range(50):
        (tmp_path / f"r{number}").mkdir()
        (tmp_path / f"r{number}" / "report.json").write_text(text)
    started = _children_s()
    assert sdcompress("compare", *(tmp_path / f"r{i}" for i in range(50)), "--out", tmp_path / "out").returncode == 0
    assert 0 < _children_s() - started < 5


def _children_s() -> float:
    """Processor seconds of all the child processes that have ended."""
    return os.times().children_user + os.times().children_system
