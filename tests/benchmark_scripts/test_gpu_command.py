"""`make gpu`: its small form on the CPU, its tables and limits, and what `make gpu-wheels` gathers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.part import PARTS
from benchmarks.gpu.random_models import CONTENDERS
from benchmarks.gpu.tables import read_run, run_tables, status_text
from benchmarks.gpu.wheels import PRESENT, pinned
from sdcompress.planning.recipe import parse_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result files of the small form."""
    folder = tmp_path_factory.mktemp("gpu") / "out"
    arguments = [f"GPU_PYTHON={sys.executable}", f"OUT={folder}", "ARGS=--device cpu --small --commit abc"]
    answer = subprocess.run(["make", "gpu", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-2000:]
    return folder


def test_every_part_has_a_result(out: Path) -> None:
    run = read_run(out)
    assert list(run) == list(PARTS) == list(command.LIMITS_S)
    assert len(list(out.iterdir())) == len(PARTS) <= 8  # what can be fetched from such a machine
    for result in run.values():
        assert result["status"] == "done" and result["errors"] == {} and result["log_tail"] == []
        assert result["ended"] >= result["started"] and 0 < result["seconds"] < result["limit_s"]
        assert result["environment"]["versions"]["torch"] and result["commit"] == "abc" and result["small"]
        assert not result["results"].get("left_out")
    assert run["tests"]["results"]["counts"]["failed"] == 0 < run["tests"]["results"]["counts"]["passed"]
    assert list(run["sd15"]["results"]["contenders"]) == ["original", *CONTENDERS]
    for name in ("sd15", "sdxl"):
        for one in run[name]["results"]["contenders"].values():
            assert one["finite"] and one["step"]["median_s"] > 0 and one["picture"]["median_ratio"] > 0
            # In 3 bits benchmarks/results/torch_step.json has 0.78; outputs that share nothing are 1.41 apart.
            assert one["relative_error"] is None or one["relative_error"] < 0.8
    assert run["training"]["results"]["runs"][0]["samples_per_s"] > 0


def test_tables_are_made_of_it(out: Path) -> None:
    text = run_tables(out)
    for shown in (*(f"| `{name}` |" for name in CONTENDERS), "| original |", "samples a second", "passed, 0 failed"):
        assert shown in text
    assert "Failed:" not in text
    # A trial without a GPU is not called a run on one.
    assert status_text(out).startswith("A trial on a processor: **not yet run on a GPU**")


def test_without_files_the_page_says_so(tmp_path: Path) -> None:
    assert "**not yet run on a GPU**" in status_text(tmp_path)
    assert run_tables(tmp_path) == "There are no figures yet."


def run_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, limit_s: float) -> dict[str, Any]:
    """Run a process that pretends to be the part `sd15`; its arguments are the result file and the folder."""
    real = command.run_limited

    def pretend(given: Any, *others: Any) -> str:
        return real([sys.executable, "-c", script, *given[3:]], *others)

    monkeypatch.setattr(command, "run_limited", pretend)
    about = {"device": "cpu", "small": True, "command": "c", "commit": "abc", "card": []}
    return command.run_part("sd15", tmp_path / "sd15.json", tmp_path, dict(os.environ), about, limit_s)


SAVING = """
import json, sys, time
content = json.load(open(sys.argv[1]))
content["results"]["contenders"] = {}
json.dump(content, open(sys.argv[1], "w"))
print("measuring", flush=True)
"""


def test_a_late_part_costs_only_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "SHORTEST_S", 0)
    began = time.monotonic()
    result = run_part(monkeypatch, tmp_path, SAVING + "time.sleep(60)", 1.5)
    assert time.monotonic() - began < 30
    assert result["status"] == "timed out" and "time limit" in result["errors"]["sd15"]
    assert result["results"] == {"contenders": {}} and result["log_tail"] == ["measuring"]
    assert json.loads((tmp_path / "sd15.json").read_text()) == result


def test_a_broken_part_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run_part(monkeypatch, tmp_path, SAVING + "raise SystemExit('the card is lost')", 60)
    assert result["status"] == "failed" and result["errors"] == {"sd15": "the process ended with exit code 1"}
    assert result["log_tail"] == ["measuring", "the card is lost"]


def test_a_part_without_time_is_not_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run_part(monkeypatch, tmp_path, SAVING, 3)
    assert result["status"] == "timed out" and result["results"] == {} and result["seconds"] < 3


def test_limits_fit_eight_minutes() -> None:
    least = sum(kept for _, kept in command.LIMITS_S.values())
    assert least <= 480 and all(most >= kept for most, kept in command.LIMITS_S.values())


def test_wheels_are_the_newest_set_and_all_that_is_needed() -> None:
    lines = (ROOT / "constraints-latest.txt").read_text(encoding="utf-8").splitlines()
    newest = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert {canonicalize_name(name): version for name, version in pinned().items()}.items() <= newest.items()
    there = {canonicalize_name(name) for name in (*PRESENT, *pinned())}
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    core = yaml.safe_load(text.split("dependencies = ")[1].split("\n]")[0] + "]")  # a list of strings in both languages
    assert len(core) > 10 and {canonicalize_name(Requirement(line).name) for line in core} <= there


def test_contenders_are_recipes() -> None:
    for text in CONTENDERS.values():
        if "\n" in text:
            assert parse_recipe(text, "contender").components
