"""Where a measurement was taken: machine, system and the versions of what ran."""

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
from typing import Any, NamedTuple

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
SYSCTL = ("sysctl", "hw.optional", "machdep.cpu.brand_string")
SYSCTL_TIMEOUT_S = 5.0


class InstructionSet(NamedTuple):
    """What Linux (`/proc/cpuinfo`), macOS (`sysctl`; None: it does not tell) and torch call an instruction set."""

    cpuinfo: str
    sysctl: str | None
    torch: str


# Those that matter for 8-bit integers and bfloat16.
INSTRUCTION_SETS: Mapping[str, Mapping[str, InstructionSet]] = {
    "x86": {
        "AVX2": InstructionSet("avx2", "hw.optional.avx2_0", "avx2"),
        "AVX-VNNI": InstructionSet("avx_vnni", None, "avx_vnni"),
        "AVX512F": InstructionSet("avx512f", "hw.optional.avx512f", "avx512_f"),
        "AVX512-VNNI": InstructionSet("avx512_vnni", None, "avx512_vnni"),
        "AVX512-BF16": InstructionSet("avx512_bf16", None, "avx512_bf16"),
        "AMX-TILE": InstructionSet("amx_tile", None, "amx_tile"),
        "AMX-INT8": InstructionSet("amx_int8", None, "amx_int8"),
        "AMX-BF16": InstructionSet("amx_bf16", None, "amx_bf16"),
    },
    "arm": {
        "dotprod": InstructionSet("asimddp", "hw.optional.arm.FEAT_DotProd", "dot"),
        "i8mm": InstructionSet("i8mm", "hw.optional.arm.FEAT_I8MM", "i8mm"),
        "bf16": InstructionSet("bf16", "hw.optional.arm.FEAT_BF16", "bf16"),
        "SVE": InstructionSet("sve", None, "sve"),
    },
}
FAMILIES = {
    "x86_64": "x86",
    "amd64": "x86",
    "i386": "x86",
    "i686": "x86",
    "x86": "x86",
    "aarch64": "arm",
    "arm64": "arm",
}
# Every processor of the family that torch runs on has this: where torch denies it, torch could not look.
CERTAIN = {"x86": "sse2", "arm": "neon"}

# Linux names ARM processors by implementer and part alone; these are the server and board cores one meets.
ARM_IMPLEMENTERS = {"0x41": "Arm", "0x61": "Apple", "0xc0": "Ampere", "0x51": "Qualcomm"}
ARM_PARTS = {
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
}


def describe_environment() -> dict[str, Any]:
    """Versions of the libraries that are installed, the processor, its cores, and memory in bytes."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": _allowed_cores(),
        "memory_bytes": _memory_bytes(),
        "versions": installed_versions(),
    }


def describe_cpu(torch: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The processor's name, usable cores, memory in bytes and instruction sets (None: unknown).

    torch: what `torch.cpu.get_capabilities()` gave, if it was asked.
    """
    import psutil

    cpuinfo, sysctl, machine = read_cpuinfo(), read_sysctl(), platform.machine()
    memory_bytes = usable_memory_bytes()
    return {
        "name": cpu_name(cpuinfo, sysctl),
        "machine": machine,
        "cores": usable_cores(),
        "memory_bytes": memory_bytes,
        "memory_available_bytes": min(memory_bytes, int(psutil.virtual_memory().available)),
        "instructions": instruction_sets(machine, cpuinfo, sysctl, torch),
    }


def describe_room(what: str, folder: Path) -> dict[str, Any]:
    """Free bytes where `folder` is, or will be made; `problem` says why they are unknown."""
    free_bytes, problem = None, None
    try:
        folder = folder.absolute()
        there = next((each for each in (folder, *folder.parents) if each.exists()), folder)
        free_bytes = shutil.disk_usage(there).free
    except OSError as error:
        problem = str(error)
    return {"what": what, "path": str(folder), "free_bytes": free_bytes, "problem": problem}


def installed_versions() -> dict[str, str]:
    """Distribution -> version of those of LIBRARIES that are installed."""
    return {name: version for name in LIBRARIES if (version := distribution_version(name)) is not None}


def distribution_version(distribution: str) -> str | None:
    """The version of an installed distribution; None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def cpu_name(cpuinfo: str | None = None, sysctl: str | None = None) -> str:
    """The processor's name as the system gives it; the texts are read from the system unless given."""
    cpuinfo = read_cpuinfo() if cpuinfo is None else cpuinfo
    sysctl = read_sysctl() if sysctl is None else sysctl
    named = [*_values(cpuinfo, "model name"), *_values(sysctl, "machdep.cpu.brand_string")]
    implementers, parts = _values(cpuinfo, "CPU implementer"), _values(cpuinfo, "CPU part")
    if not named and implementers and parts:
        kinds = dict.fromkeys(zip(implementers, parts, strict=False))
        makers = (ARM_IMPLEMENTERS.get(maker, f"implementer {maker}") for maker, _ in kinds)
        cores = (ARM_PARTS.get(kind, f"part {kind[1]}") for kind in kinds)
        return " + ".join(f"{maker} {core}" for maker, core in zip(makers, cores, strict=True))
    return named[0] if named else platform.processor() or platform.machine()


def instruction_sets(
    machine: str, cpuinfo: str = "", sysctl: str = "", torch: Mapping[str, Any] | None = None
) -> dict[str, bool | None]:
    """Name -> there or not, None for unknown, of the instruction sets of INSTRUCTION_SETS that suit `machine`.

    machine: as `platform.machine()` gives it; cpuinfo, sysctl: the systems' texts, empty where there is none;
    torch: what `torch.cpu.get_capabilities()` gave. torch fills in what the system does not tell.
    """
    family = FAMILIES.get(machine.lower(), "")
    lines = [*_values(cpuinfo, "flags"), *_values(cpuinfo, "Features")]
    # What is to be relied on is what all cores have: they can differ on ARM.
    flags = set.intersection(*(set(line.split()) for line in lines)) if lines else None
    told = torch if torch is not None and torch.get(CERTAIN.get(family, ""), True) else {}
    found: dict[str, bool | None] = {}
    for name, called in INSTRUCTION_SETS.get(family, {}).items():
        values = _values(sysctl, called.sysctl) if called.sysctl else []
        if flags is not None:
            found[name] = called.cpuinfo in flags
        elif values:
            found[name] = values[0] == "1"
        else:
            found[name] = bool(told[called.torch]) if called.torch in told else None
    return found


def usable_cores(cgroup: Path = CGROUP) -> int | None:
    """Cores this process may use: those it is allowed to run on, and no more than a container's quota, rounded up."""
    cores = _allowed_cores()
    quota, _, period = _first_line(cgroup / "cpu.max").partition(" ")
    if not (quota.isdigit() and period.isdigit()):
        quota, period = _first_line(cgroup / "cpu/cpu.cfs_quota_us"), _first_line(cgroup / "cpu/cpu.cfs_period_us")
    if not (quota.isdigit() and period.isdigit()) or cores is None:
        return cores
    return max(1, min(cores, math.ceil(int(quota) / int(period))))


def usable_memory_bytes(cgroup: Path = CGROUP) -> int:
    """Memory this process may use: the machine's, or a container's limit where that is lower."""
    limits = (_first_line(cgroup / name) for name in ("memory.max", "memory/memory.limit_in_bytes"))
    return min([_memory_bytes(), *(int(limit) for limit in limits if limit.isdigit())])


def read_cpuinfo() -> str:
    """Linux's description of the processor; empty elsewhere."""
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_sysctl() -> str:
    """macOS's description of the processor, lines of `key: value`; empty elsewhere."""
    if sys.platform != "darwin":
        return ""
    try:
        result = subprocess.run(SYSCTL, capture_output=True, text=True, timeout=SYSCTL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout


def _values(text: str, key: str) -> list[str]:
    """The values of every line `key: value` of a text."""
    pairs = (line.partition(":") for line in text.splitlines())
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def _allowed_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _first_line(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except OSError:
        return ""
