"""The terminal view of what `doctor` found: every finding has its line, and nothing is cut."""

from __future__ import annotations

import io
from typing import Any

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


def test_what_fails_or_is_missing_says_so_in_its_line() -> None:
    broken = {"version": "2.13.0", "problem": "its process died of signal SIGILL"}
    late = {"version": None, "problem": "no answer within 60 s"}
    unknown = {**findings()["cpu"], "machine": "riscv64", "cores": None, "instructions": {}}
    found = findings(torch=broken, onnxruntime=late, bitsandbytes={"version": None}, cpu=unknown, advice=[], notes=[])
    text = rendered(found, width=200)
    assert section(text, "GPU") == ["unknown: torch does not answer"]
    assert section(text, "torch") == ["2.13.0, does not work: its process died of signal SIGILL"]
    assert section(text, "ONNX Runtime") == ["installed, does not work: no answer within 60 s"]
    assert section(text, "bitsandbytes") == ["not installed"]
    assert "usable cores: unknown" in text and "unknown for riscv64" in text
    assert section(text, "Recipes that suit this machine, best first")[0].startswith("none: no rule knows")


def test_gpus_tell_what_is_known_of_them() -> None:
    nothing = dict.fromkeys(("compute_capability", "memory_bytes", "memory_available_bytes"))
    gpus = [
        GPU | {"kind": "mps", "compute_capability": None, "memory_available_bytes": None},
        GPU | {"kind": "rocm", "problem": "busy"},
        GPU | {"kind": "xpu"} | nothing,
    ]
    assert section(rendered(findings(torch={"version": "2", "gpus": gpus, "remarks": []})), "GPU") == [
        "Apple MPS: RTX 4090, memory: 24.00 GB",
        "ROCm RTX 4090: does not answer: busy",
        "Intel XPU: RTX 4090",
    ]
    torch = {"version": "2", "gpus": [], "remarks": ["torch is built for CUDA 12.6 and finds no such GPU"]}
    assert section(rendered(findings(torch=torch)), "GPU") == ["none that torch can use", *torch["remarks"]]


def test_nothing_is_cut() -> None:
    piped = rendered(findings(), soft_wrap=True)
    assert f"  CUDAExecutionProvider: {LONG}\n" in piped
    narrow = rendered(findings(), width=80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert LONG in " ".join(section(narrow, "ONNX Runtime"))
