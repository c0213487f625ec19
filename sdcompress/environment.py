"""Where a measurement was taken: machine, system and the versions of what ran."""

from __future__ import annotations

import os
import platform
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
    "onnxruntime",
    "optimum-onnx",
    "numpy",
)


def describe_environment() -> dict[str, Any]:
    """Versions of the libraries that are installed, the processor, its cores, and memory in bytes."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "versions": installed_versions(),
    }


def installed_versions() -> dict[str, str]:
    """Distribution -> version of those of LIBRARIES that are installed."""
    return {name: version for name in LIBRARIES if (version := _version(name)) is not None}


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
