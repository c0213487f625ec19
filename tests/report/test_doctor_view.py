"""The terminal view of the findings: every finding has its line, nothing is cut, and no torch is needed."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from sdcompress.planning.advice import Diagnosis
from sdcompress.report.doctor_view import render

GPU = {
    "kind": "cuda",
    "name": "RTX 4090",
    "memory_bytes": 24e9,
    "memory_available_bytes": 20.5e9,
    "compute_capability": "8.9",
    "problem": None,
}
LONG = "the library libcublas.so.12 cannot be opened, since neither LD_LIBRARY_PATH nor the wheel has it at all"


def findings(**changes: Any) -> dict[str, Any]:
    return {
        "cpu": {
            "name": "AMD Ryzen 7 5800X [tm]",
            "machine": "x86_64",
            "cores": 16,
            "memory_bytes": 32e9,
            "memory_available_bytes": 12e9,
            "instructions": {"AVX2": True, "AVX-VNNI": False, "AVX512F": False, "AMX-INT8": None},
        },
        "torch": {"version": "2.13.0", "gpus": [GPU], "remarks": []},
        "onnxruntime": {
            "version": "1.20.1",
            "builds": ["onnxruntime-gpu"],
            "providers": {"CUDAExecutionProvider": LONG, "CPUExecutionProvider": None},
        },
        "bitsandbytes": {
            "version": "0.46.0",
            "trials": [
                {"device": "cpu", "format": "nf4", "problem": None},
                {"device": "cuda", "format": "nf4", "problem": "no kernel image"},
            ],
        },
        "versions": {"sdcompress": "0.1.0", "diffusers": "0.39.0"},
        "disk": [
            {"what": "current folder", "path": "/work", "free_bytes": 5e9, "problem": None},
            {"what": "Hugging Face cache", "path": "/cache", "free_bytes": None, "problem": "Permission denied"},
        ],
        "traits": ["cuda"],
        "advice": [
            {"recipe": "nf4", "reason": "least GPU memory", "warnings": ["no kernel image"], "install": None},
            {"recipe": "onnx-fp16", "reason": "for the GPU", "warnings": [], "install": "pip install onnxruntime-gpu"},
        ],
        "notes": ["A note."],
        **changes,
    }


def rendered(found: dict[str, Any], width: int = 80, soft_wrap: bool = False) -> str:
    stream = io.StringIO()
    render(Diagnosis.model_validate(found), Console(file=stream, width=width, soft_wrap=soft_wrap))
    return stream.getvalue()


def section(text: str, title: str) -> list[str]:
    """The lines under a title, without their indentation."""
    lines = text.splitlines()
    rest = lines[lines.index(title) + 1 :]
    end = next((i for i, line in enumerate(rest) if not line.startswith(" ")), len(rest))
    return [line.strip() for line in rest[:end]]


def test_every_finding_has_its_line() -> None:
    text = rendered(findings(), width=200)
    assert section(text, "Processor") == [
        "AMD Ryzen 7 5800X [tm] (x86_64), usable cores: 16",
        "memory: 32.00 GB, 12.00 GB of it available",
        "instructions for 8-bit integers and bfloat16:",
        "there: AVX2",
        "not there: AVX-VNNI, AVX512F",
        "unknown: AMX-INT8",
    ]
    assert section(text, "GPU") == [
        "CUDA: RTX 4090, compute capability 8.9, memory: 24.00 GB, 20.50 GB of it available"
    ]
    assert section(text, "ONNX Runtime") == ["1.20.1", f"CUDAExecutionProvider: {LONG}", "CPUExecutionProvider: works"]
    assert section(text, "bitsandbytes") == [
        "0.46.0",
        "nf4 on cpu: works",
        "nf4 on cuda: does not work: no kernel image",
    ]
    (libraries,) = section(text, "Other libraries")
    assert libraries.startswith("sdcompress 0.1.0, diffusers 0.39.0, transformers not installed")
    assert section(text, "Disk") == [
        "current folder (/work): 5.00 GB free",
        "Hugging Face cache (/cache): unknown: Permission denied",
    ]
    assert section(text, "Recipes that suit this machine, best first") == [
        "1. nf4: least GPU memory",
        "beware: no kernel image",
        "2. onnx-fp16: for the GPU",
        "needs: pip install onnxruntime-gpu",
        "A note.",
    ]


def test_a_failed_probe_says_so_in_its_line() -> None:
    broken = {"version": "2.13.0", "problem": "its process died of signal SIGILL"}
    late = {"version": None, "problem": "no answer within 60 s"}
    text = rendered(findings(torch=broken, onnxruntime=late, bitsandbytes={"version": None}), width=200)
    assert section(text, "GPU") == ["unknown: torch does not answer"]
    assert section(text, "torch") == ["2.13.0, does not work: its process died of signal SIGILL"]
    assert section(text, "ONNX Runtime") == ["installed, does not work: no answer within 60 s"]
    assert section(text, "bitsandbytes") == ["not installed"]


@pytest.mark.parametrize(
    ("kind", "gpu", "line"),
    [
        ("mps", {"compute_capability": None, "memory_available_bytes": None}, "Apple MPS: RTX 4090, memory: 24.00 GB"),
        ("rocm", {"problem": "busy"}, "ROCm RTX 4090: does not answer: busy"),
        ("xpu", dict.fromkeys(("compute_capability", "memory_bytes", "memory_available_bytes")), "Intel XPU: RTX 4090"),
    ],
)
def test_gpus_tell_what_is_known_of_them(kind: str, gpu: dict[str, Any], line: str) -> None:
    torch = {"version": "2", "gpus": [{**GPU, "kind": kind, **gpu}], "remarks": []}
    assert section(rendered(findings(torch=torch)), "GPU") == [line]


def test_no_gpu_comes_with_its_remarks() -> None:
    torch = {"version": "2", "gpus": [], "remarks": ["torch is built for CUDA 12.6 and finds no such GPU"]}
    assert section(rendered(findings(torch=torch)), "GPU") == ["none that torch can use", *torch["remarks"]]


def test_other_machines_are_unknown_and_no_advice_is_said() -> None:
    cpu = {**findings()["cpu"], "machine": "riscv64", "cores": None, "instructions": {}}
    text = rendered(findings(cpu=cpu, advice=[], notes=[]), width=120)
    assert "usable cores: unknown" in text and "unknown for riscv64" in text
    assert section(text, "Recipes that suit this machine, best first")[0].startswith("none: no rule knows")


def test_nothing_is_cut() -> None:
    piped = rendered(findings(), soft_wrap=True)
    assert f"  CUDAExecutionProvider: {LONG}\n" in piped
    narrow = rendered(findings(), width=80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert LONG in " ".join(section(narrow, "ONNX Runtime"))


def test_the_view_imports_nothing_heavy() -> None:
    code = (
        "import sys, sdcompress.report.doctor_view\n"
        "heavy = {'torch', 'onnxruntime', 'bitsandbytes', 'sdcompress.backends.doctor'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
