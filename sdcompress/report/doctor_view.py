"""The terminal view of what `sdcompress doctor` found: the machine, what runs on it, and the recipes that suit it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from sdcompress.backends.findings import (
    BitsandbytesFindings,
    CpuFindings,
    Gpu,
    LibraryFindings,
    OnnxRuntimeFindings,
    TorchFindings,
)
from sdcompress.planning.advice import Diagnosis
from sdcompress.report.number_text import bytes_text

INDENT = 2
GPU_KINDS = {"cuda": "CUDA", "rocm": "ROCm", "mps": "Apple MPS", "xpu": "Intel XPU"}
PRESENCE = {True: "there", False: "not there", None: "unknown"}
# Libraries with a section of their own are not listed again.
LIBRARIES = (
    "sdcompress", "diffusers", "transformers", "accelerate", "onnx", "onnxscript", "openvino", "optimum-onnx"
)  # fmt: skip
NOT_INSTALLED = "not installed"


def render(findings: Diagnosis, console: Console) -> None:
    """Print the findings."""
    for title, lines in (
        ("Processor", _cpu_lines(findings.cpu)),
        ("GPU", _gpu_lines(findings.torch)),
        ("torch", _library_lines(findings.torch)),
        ("ONNX Runtime", _onnxruntime_lines(findings.onnxruntime)),
        ("bitsandbytes", _bitsandbytes_lines(findings.bitsandbytes)),
        ("Other libraries", _version_lines(findings.versions)),
        ("Disk", _disk_lines(findings)),
        ("Recipes that suit this machine, best first", _advice_lines(findings)),
    ):
        console.print(Text(title, style="bold"))
        for depth, line in lines:
            if console.soft_wrap:  # a file or a pipe: lines stay whole, where a padding would cut them
                console.print(Text(" " * INDENT * depth + line))
            else:
                console.print(Padding(Text(line), (0, 0, 0, INDENT * depth), expand=False))


Lines = Iterator[tuple[int, str]]  # depth of indentation, text


def _cpu_lines(cpu: CpuFindings) -> Lines:
    cores = "unknown" if cpu.cores is None else str(cpu.cores)
    yield 1, f"{cpu.name} ({cpu.machine}), usable cores: {cores}"
    yield 1, f"memory: {bytes_text(cpu.memory_bytes)}, {bytes_text(cpu.memory_available_bytes)} of it available"
    if not cpu.instructions:
        yield 1, f"instructions for 8-bit integers and bfloat16: unknown for {cpu.machine}"
        return
    yield 1, "instructions for 8-bit integers and bfloat16:"
    for presence, word in PRESENCE.items():
        names = [name for name, there in cpu.instructions.items() if there is presence]
        if names:
            yield 2, f"{word}: {', '.join(names)}"


def _gpu_lines(torch: TorchFindings) -> Lines:
    if torch.gpus is None:
        yield 1, "unknown: torch does not answer"
        return
    for gpu in torch.gpus:
        if gpu.problem:
            yield 1, f"{GPU_KINDS[gpu.kind]} {gpu.name}: does not answer: {gpu.problem}"
            continue
        yield 1, f"{GPU_KINDS[gpu.kind]}: {gpu.name}" + "".join(f", {each}" for each in _gpu_facts(gpu))
    if not torch.gpus:
        yield 1, "none that torch can use"
    for remark in torch.remarks:
        yield 1, remark


def _gpu_facts(gpu: Gpu) -> Iterator[str]:
    if gpu.compute_capability:
        yield f"compute capability {gpu.compute_capability}"
    if gpu.memory_bytes is not None:
        yield f"memory: {bytes_text(gpu.memory_bytes)}"
    if gpu.memory_available_bytes is not None:
        yield f"{bytes_text(gpu.memory_available_bytes)} of it available"


def _library_lines(found: LibraryFindings) -> Lines:
    """Yield the version, or what is wrong."""
    if found.problem:
        yield 1, f"{found.version or 'installed'}, does not work: {found.problem}"
    else:
        yield 1, found.version or NOT_INSTALLED


def _onnxruntime_lines(found: OnnxRuntimeFindings) -> Lines:
    yield from _library_lines(found)
    for provider, problem in found.providers.items():
        yield 1, f"{provider}: {problem or 'works'}"


def _bitsandbytes_lines(found: BitsandbytesFindings) -> Lines:
    yield from _library_lines(found)
    for trial in found.trials:
        told = "works" if trial.problem is None else f"does not work: {trial.problem}"
        yield 1, f"{trial.format} on {trial.device}: {told}"


def _version_lines(versions: Mapping[str, str]) -> Lines:
    yield 1, ", ".join(f"{name} {versions.get(name, NOT_INSTALLED)}" for name in LIBRARIES)


def _disk_lines(findings: Diagnosis) -> Lines:
    for room in findings.disk:
        told = f"{bytes_text(room.free_bytes)} free" if room.problem is None else f"unknown: {room.problem}"
        yield 1, f"{room.what} ({room.path}): {told}"


def _advice_lines(findings: Diagnosis) -> Lines:
    for number, advice in enumerate(findings.advice, start=1):
        yield 1, f"{number}. {advice.recipe}: {advice.reason}"
        for warning in advice.warnings:
            yield 2, f"beware: {warning}"
        if advice.install:
            yield 2, f"needs: {advice.install}"
    if not findings.advice:
        yield 1, "none: no rule knows this machine; `sdcompress recipes list` shows them all"
    for note in findings.notes:
        yield 1, note
