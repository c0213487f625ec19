"""The tests marked `gpu`, on the device, each outcome saved as soon as it is known."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest

from benchmarks.gpu.part import Part
from benchmarks.gpu.wheels import ROOT

PROCESSES = 6  # which share the card; most of a test's time goes to the CPU
TEST_TIMEOUT_S = 90


class Outcomes:
    """A plugin of pytest that saves counts, and the message of each test that failed or was skipped."""

    def __init__(self, part: Part):
        self._part = part
        self._counts = {"passed": 0, "failed": 0, "skipped": 0}
        self._failed: dict[str, str] = {}
        self._skipped: dict[str, str] = {}
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: when it ran, or when it failed or was skipped before or after that."""
        self._seconds[report.nodeid] = round(self._seconds.get(report.nodeid, 0) + report.duration, 2)
        if report.when != "call" and report.passed:
            return
        self._counts[report.outcome] += 1
        if report.failed:
            self._failed[report.nodeid] = str(report.longrepr)[-3000:]
        elif report.skipped:
            self._skipped[report.nodeid] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else "")
        self._save()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a file that cannot be imported as failed."""
        if report.failed:
            self._counts["failed"] += 1
            self._failed[report.nodeid] = str(report.longrepr)[-3000:]
            self._save()

    def _save(self) -> None:
        slowest = dict(sorted(self._seconds.items(), key=lambda item: -item[1])[:10])
        self._part.save(counts=self._counts, failed=self._failed, skipped=self._skipped, slowest_s=slowest)


def run(part: Part) -> None:
    """Run the tests of tests/gpu; with `small` few of each kind."""
    os.environ["GPU_TEST_DEVICE"] = part.device
    os.environ["GPU_TEST_SMALL"] = "1" if part.small else ""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # otherwise every process starts a pool, for a few kernels each
    options = ["-m", "gpu", "-p", "no:cacheprovider", f"--timeout={TEST_TIMEOUT_S}"]
    options += [f"--basetemp={part.work / 'tests'}", "--color=no", "-q"]
    if not part.small and importlib.util.find_spec("xdist"):
        options += ["--numprocesses", str(PROCESSES)]
    outcomes: Any = Outcomes(part)
    code = pytest.main([str(ROOT / "tests" / "gpu"), *options], plugins=[outcomes])
    if code != pytest.ExitCode.OK:
        failed = part.content["results"].get("failed", {})
        raise AssertionError(f"pytest ended with {code!s}; failed: {', '.join(failed) or 'nothing that was run'}")
