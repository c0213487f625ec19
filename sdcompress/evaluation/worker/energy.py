"""Energy in joules, where the machine counts it: Intel's and AMD's RAPL for CPUs, NVML for NVIDIA GPUs.

The counters are of the whole package, or the whole GPU, and so include other programs that run meanwhile.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Counts joules between `begin` and `end` with whatever counts the energy of `device`."""

    def __init__(self, device: str, powercap: Path = POWERCAP):
        self._domains = [] if device == "cuda" else _readable_domains(powercap)
        self._gpu = _nvml_handle() if device == "cuda" else None
        # What counts: `rapl`, `nvml`, or None where energy is not measured.
        self.source = "rapl" if self._domains else "nvml" if self._gpu is not None else None

    def begin(self) -> list[float]:
        """Return the counters now, for `end`."""
        if self._gpu is not None:
            library, handle = self._gpu
            return [library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3]  # millijoules
        return [_read(domain / "energy_uj") / 1e6 for domain in self._domains]

    def end(self, begun: list[float]) -> float | None:
        """Return the joules since `begin` returned `begun`; None where energy is not measured."""
        if self.source is None:
            return None
        spent = [now - before for before, now in zip(begun, self.begin(), strict=True)]
        if self._domains:  # RAPL's counters start again from zero, after some minutes of load
            ranges = [_read(domain / "max_energy_range_uj") / 1e6 for domain in self._domains]
            spent = [value + full if value < 0 else value for value, full in zip(spent, ranges, strict=True)]
        return sum(spent)


def _readable_domains(powercap: Path) -> list[Path]:
    """Return the CPU packages' folders, not those inside them, which count twice. Often only root may read them."""
    found = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") == 1:
            try:
                if (folder / "name").read_text(encoding="ascii").startswith("package"):
                    _read(folder / "energy_uj")
                    found.append(folder)
            except (OSError, ValueError):
                continue
    return found


def _read(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))


def _nvml_handle() -> tuple[Any, Any] | None:
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        # NVML numbers all GPUs, torch those that are visible: the UUID names one.
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:
        return None  # no library, no driver, or a GPU that does not count: energy is reported as not measured
    return pynvml, handle
