"""Joules from RAPL's counters in a folder of our own, and from a stand-in for NVML."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sdcompress.evaluation.worker.energy import EnergyMeter


def _domain(folder: Path, name: str, energy_uj: int) -> Path:
    folder.mkdir()
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")
    return folder


def test_packages_are_added_and_counters_may_start_again(tmp_path: Path) -> None:
    first = _domain(tmp_path / "intel-rapl:0", "package-0", 1_000_000)
    second = _domain(tmp_path / "intel-rapl:1", "package-1", 9_000_000)
    _domain(tmp_path / "intel-rapl:0:0", "core", 0)
    _domain(tmp_path / "intel-rapl:2", "psys", 0)
    meter = EnergyMeter("cpu", tmp_path)
    assert meter.source == "rapl"
    begun = meter.begin()
    (first / "energy_uj").write_text("3500000")
    (second / "energy_uj").write_text("500000")  # over the end: 1 J to the range's, 0.5 J since
    assert meter.end(begun) == pytest.approx(2.5 + 1.5)


def test_without_counters_energy_is_not_measured(tmp_path: Path) -> None:
    meter = EnergyMeter("cpu", tmp_path)
    assert meter.source is None and meter.end(meter.begin()) is None


def test_a_gpu_is_read_by_its_uuid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counter = iter((0, 1_000, 4_000))  # millijoules; the first reading only tries whether it counts
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counter) if handle == "GPU-abc" else 1 / 0,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=[None, "abc"][index]))
    meter = EnergyMeter("cuda", tmp_path)
    assert meter.source == "nvml" and meter.end(meter.begin()) == pytest.approx(3.0)
