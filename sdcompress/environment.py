"""Where a measurement is taken: the machine, its processor and memory, and the versions of the libraries."""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = (
    "sdcompress",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "torchmetrics",
    "bitsandbytes",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "optimum-onnx",
    "gguf",
    "numpy",
)

CPUINFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")
COMMAND_TIMEOUT_S = 5.0

# The instruction sets that matter for 8-bit integers and bfloat16, by processor family. Linux and torch call them the
# same but for hyphens and underscores, and for "dotprod".
INSTRUCTION_SETS = {
    "x86": ("AVX2", "AVX-VNNI", "AVX512F", "AVX512-VNNI", "AVX512-BF16", "AMX-TILE", "AMX-INT8", "AMX-BF16"),
    "arm": ("dotprod", "i8mm", "bf16", "SVE"),
}
_OTHER_NAMES = {"asimddp": "dotprod", "dot": "dotprod"}


def describe_environment() -> dict[str, Any]:
    """Return the versions of Python and the installed libraries, the processor, its cores, and the memory in bytes."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": _allowed_cores(),
        "memory_bytes": _memory_bytes(),
        "versions": installed_versions(),
    }


def describe_cpu(torch: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the processor's name, usable cores, memory in bytes, and instruction sets (None: unknown).

    Args:
        torch: what `torch.cpu.get_capabilities()` returns; None if it was not asked.
    """
    machine = platform.machine()
    return {
        "name": cpu_name(),
        "machine": machine,
        "cores": usable_cores(),
        "memory_bytes": usable_memory_bytes(),
        "memory_available_bytes": available_memory_bytes(),
        "instructions": instruction_sets(machine, _read(CPUINFO), torch),
    }


def describe_disk(what: str, folder: Path) -> dict[str, Any]:
    """Return the free bytes of the disk on which `folder` is or will be made; `problem` says why they are unknown."""
    free_bytes, problem = None, None
    try:
        folder = folder.absolute()
        existing = next((each for each in (folder, *folder.parents) if each.exists()), folder)
        free_bytes = shutil.disk_usage(existing).free
    except OSError as error:
        problem = str(error)
    return {"what": what, "path": str(folder), "free_bytes": free_bytes, "problem": problem}


def installed_versions() -> dict[str, str]:
    """Return distribution -> version of those of LIBRARIES that are installed."""
    return {name: version for name in LIBRARIES if (version := distribution_version(name)) is not None}


def distribution_version(distribution: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the processor's name, as Linux or macOS gives it."""
    names = _values(_read(CPUINFO), "model name")
    if not names and sys.platform == "darwin":
        names = _values(_output_of("sysctl", "machdep.cpu.brand_string"), "machdep.cpu.brand_string")
    elif not names and sys.platform == "linux":  # on ARM, /proc/cpuinfo has numbers and lscpu knows their names
        text = _output_of("lscpu")
        models = [f"{' '.join(_values(text, 'Vendor ID'))} {model}" for model in _values(text, "Model name")]
        names = [" + ".join(models).strip()]
    return next(filter(None, names), "") or platform.processor() or platform.machine()


def instruction_sets(machine: str, cpuinfo: str = "", torch: Mapping[str, Any] | None = None) -> dict[str, bool | None]:
    """Return name -> whether the processor has it, or None if unknown, of the INSTRUCTION_SETS of its family.

    Args:
        machine: as `platform.machine()` returns it.
        cpuinfo: the text of Linux' /proc/cpuinfo; empty elsewhere.
        torch: what `torch.cpu.get_capabilities()` returns, for systems without that file.

    Examples:
        >>> instruction_sets("aarch64", "Features : fp asimd asimddp")
        {'dotprod': True, 'i8mm': False, 'bf16': False, 'SVE': False}
    """
    lines = [*_values(cpuinfo, "flags"), *_values(cpuinfo, "Features")]
    known: dict[str, bool] = {}
    if lines:  # the cores of ARM processors can differ: all must have it
        flags = set.intersection(*({_plain_name(flag) for flag in line.split()} for line in lines))
        known = {_plain_name(name): _plain_name(name) in flags for names in INSTRUCTION_SETS.values() for name in names}
    elif torch is not None and any(torch.values()):  # a torch that could not look denies everything
        known = {_plain_name(name): bool(value) for name, value in torch.items()}
    return {name: known.get(_plain_name(name)) for name in INSTRUCTION_SETS.get(_family(machine.lower()), ())}


def usable_cores(cgroup: Path = CGROUP) -> int | None:
    """Return how many cores this process may use: its affinity, or a container's quota, rounded up, if that is less."""
    cores = _allowed_cores()
    quota, _, period = _first_line(cgroup / "cpu.max").partition(" ")
    if not (quota.isdigit() and period.isdigit()):
        quota, period = _first_line(cgroup / "cpu/cpu.cfs_quota_us"), _first_line(cgroup / "cpu/cpu.cfs_period_us")
    if not (quota.isdigit() and period.isdigit()) or cores is None:
        return cores
    return max(1, min(cores, math.ceil(int(quota) / int(period))))


def usable_memory_bytes(cgroup: Path = CGROUP) -> int:
    """Return how many bytes of memory this process may use: the machine's, or a container's limit if that is less."""
    limits = (_first_line(cgroup / name) for name in ("memory.max", "memory/memory.limit_in_bytes"))
    return min([_memory_bytes(), *(int(limit) for limit in limits if limit.isdigit())])


def available_memory_bytes() -> int:
    """Return how many bytes of memory this process may use and are free."""
    import psutil

    return min(usable_memory_bytes(), int(psutil.virtual_memory().available))


def cores_to_use() -> int:
    """Return on how many cores to work at once: those that are usable, and at most OMP_NUM_THREADS."""
    cores, limit = usable_cores() or 1, os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(limit)) if limit.isdigit() else cores


def _family(machine: str) -> str:
    if machine.startswith(("arm", "aarch64")):
        return "arm"
    return "x86" if machine in ("x86_64", "amd64", "i386", "i686", "x86") else ""


def _plain_name(name: str) -> str:
    plain = name.lower().replace("-", "").replace("_", "")
    return _OTHER_NAMES.get(plain, plain)


def _values(text: str, key: str) -> list[str]:
    """Return the values of all lines `key: value` of a text."""
    pairs = (line.partition(":") for line in text.splitlines())
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def _output_of(*command: str) -> str:
    try:
        environment = {**os.environ, "LC_ALL": "C"}
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout


def _allowed_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _first_line(file: Path) -> str:
    return _read(file).partition("\n")[0].strip()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
