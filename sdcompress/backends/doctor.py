"""What this machine has and can run: processor, GPUs, libraries, and free space on disk."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sdcompress.backends.findings import Findings, Gpu
from sdcompress.environment import cpu_name, describe_cpu, describe_disk, distribution_version, installed_versions

PROBE_TIMEOUT_S = 60.0
# Libraries whose probes share a process, in order: bitsandbytes needs torch, which takes seconds to import.
PROBES = (("torch", "bitsandbytes"), ("onnxruntime",))
CHILD_CODE = "from sdcompress.backends.doctor import answer_probes; answer_probes({libraries})"
ANSWER = "sdcompress doctor: "  # starts the line with a probe's answer; libraries print lines too
ONNXRUNTIME_BUILDS = tuple(f"onnxruntime{build}" for build in ("", "-gpu", "-openvino", "-directml", "-rocm"))
# The ONNX graph y = -x, which tells whether a provider can start.
TRIAL_MODEL = bytes.fromhex(
    "080712003a320a0b0a017812017922034e65671201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a0208014204"
    "0a00100d"
)
REMOTE_PROVIDERS = ("AzureExecutionProvider",)  # calls a service
# Largest rounding errors in units of the block's largest value: half of NF4's widest gap, from -1 to -0.6962 (QLoRA,
# appendix E), and half of int8's step of 1/127; 2 % more for the float16 and float32 in between.
TRIAL_BOUNDS = {"nf4": 0.1519 * 1.02, "int8": 0.5 / 127 * 1.02}


def find_out() -> Findings:
    """Return what this machine has and can run."""
    with ThreadPoolExecutor() as pool:
        answers: dict[str, Any] = {}
        for told in pool.map(ask, PROBES):
            answers |= told
    instructions = answers["torch"].pop("instructions", None)
    return Findings.model_validate(
        {
            "cpu": describe_cpu(instructions),
            **answers,
            "versions": installed_versions(),
            "disk": [describe_disk("current folder", Path()), describe_disk("Hugging Face cache", _cache_folder())],
        }
    )


def ask(libraries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return library -> the answer of its probe; all probes run in one process of their own.

    `version` is None if the library is not installed. `problem` says how a probe failed, crashed or timed out.
    """
    answers: dict[str, dict[str, Any]] = {library: {"version": None} for library in libraries}
    installed = [library for library in libraries if _is_importable(library)]
    told, failure = _run_probes(installed) if installed else ({}, "")
    for library in installed:
        answers[library] = {"version": distribution_version(library), **told.get(library, {"problem": failure})}
    return answers


def answer_probes(libraries: Sequence[str]) -> None:
    """Print the answer of each library's probe on a line of its own. The process that `ask` starts calls this."""
    for library in libraries:
        try:
            answer = globals()[f"probe_{library}"]()
        except Exception as error:
            answer = {"problem": f"{type(error).__name__}: {_first_line(error)}"}
        print(f"\n{ANSWER}{json.dumps({library: answer})}", flush=True)


def _run_probes(libraries: Sequence[str]) -> tuple[dict[str, dict[str, Any]], str]:
    """Return library -> answer of those that answered, and why the others did not."""
    import psutil

    child = subprocess.Popen(
        [sys.executable, "-c", CHILD_CODE.format(libraries=list(libraries))],
        cwd=Path(__file__).parents[2],  # so that no file in the user's folder is imported as a library
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    try:
        out, err = child.communicate(timeout=PROBE_TIMEOUT_S)
        failure = _failure(child.returncode, err)
    except subprocess.TimeoutExpired:
        for process in (*psutil.Process(child.pid).children(recursive=True), child):  # compilers that it started, too
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        out, failure = child.communicate()[0], f"no answer within {PROBE_TIMEOUT_S:.0f} s"
    told: dict[str, dict[str, Any]] = {}
    for line in out.splitlines():
        if line.startswith(ANSWER):
            told |= json.loads(line.removeprefix(ANSWER))
    return told, failure


def _failure(code: int, log: str) -> str:
    """Return why a process ended, from its exit code and what it wrote to stderr."""
    if code < 0:
        return f"its process was ended by signal {signal.Signals(-code).name}"
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "no message")
    return f"{last} (exit code {code})"


def probe_torch() -> dict[str, Any]:
    """Return torch's version, the processor's instruction sets, the GPUs, and remarks on missing GPUs."""
    import torch

    told = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # older ones lack it
    gpus = []
    if torch.cuda.is_available():
        kind = "rocm" if torch.version.hip else "cuda"
        gpus += [_describe_gpu(kind, torch.cuda, index) for index in range(torch.cuda.device_count())]
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        gpus += [_describe_gpu("xpu", torch.xpu, index) for index in range(torch.xpu.device_count())]
    if torch.backends.mps.is_available():
        recommended = getattr(torch.mps, "recommended_max_memory", None)
        gpus.append(_gpu(kind="mps", name=cpu_name(), memory_bytes=recommended and recommended()))
    remarks = gpu_remarks(torch.version.cuda, torch.cuda.is_available(), shutil.which("nvidia-smi") is not None)
    instructions = {name: value for name, value in told.items() if isinstance(value, bool)}
    return {"version": torch.__version__, "instructions": instructions, "gpus": gpus, "remarks": remarks}


def gpu_remarks(cuda_build: str | None, available: bool, driver: bool) -> list[str]:
    """Return why torch has no NVIDIA GPU, if its build or an installed driver shows that there may be one.

    Args:
        cuda_build: the version of CUDA that torch is built for; None for a build without CUDA.
        available: whether torch can use CUDA.
        driver: whether an NVIDIA driver is installed.
    """
    if available or not (cuda_build or driver):
        return []
    if not cuda_build:
        return ["an NVIDIA driver is installed, but this torch is built without CUDA: install a build with CUDA"]
    return [f"torch is built for CUDA {cuda_build} and finds no such GPU" + ("; check the driver" if driver else "")]


def probe_onnxruntime() -> dict[str, Any]:
    """Return ONNX Runtime's version, its installed builds, and for each provider None or why it does not work."""
    import onnxruntime  # type: ignore[import-untyped]

    builds = [name for name in ONNXRUNTIME_BUILDS if distribution_version(name) is not None]
    providers = {
        name: "not tried: it calls a service" if name in REMOTE_PROVIDERS else _provider_problem(onnxruntime, name)
        for name in onnxruntime.get_available_providers()
    }
    return {"version": onnxruntime.__version__, "builds": builds, "providers": providers}


def probe_bitsandbytes() -> dict[str, Any]:
    """Return bitsandbytes' version, and a trial of each of its formats on each device."""
    import bitsandbytes
    import torch

    accelerators = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": getattr(torch, "xpu", None)}
    devices = ["cpu", *(name for name, module in accelerators.items() if module and module.is_available())]
    trials = [
        {"device": device, "format": name, "problem": _trial_problem(device, name)}
        for device in devices
        for name in TRIAL_BOUNDS
    ]
    return {"version": bitsandbytes.__version__, "trials": trials}


def _describe_gpu(kind: str, module: Any, index: int) -> dict[str, Any]:
    try:
        properties = module.get_device_properties(index)
        free_bytes = module.mem_get_info(index)[0] if hasattr(module, "mem_get_info") else None
    except Exception as error:
        return _gpu(kind=kind, name=f"number {index}", problem=_first_line(error))
    return _gpu(
        kind=kind,
        name=properties.name,
        memory_bytes=properties.total_memory,
        memory_available_bytes=free_bytes,
        compute_capability=f"{properties.major}.{properties.minor}" if kind == "cuda" else None,
    )


def _gpu(**facts: Any) -> dict[str, Any]:
    return Gpu(**facts).model_dump()  # with the unknown fields as None


def _provider_problem(onnxruntime: Any, provider: str) -> str | None:
    try:
        session = onnxruntime.InferenceSession(TRIAL_MODEL, providers=[provider])
    except Exception as error:
        return _first_line(error)
    # ONNX Runtime goes on with the CPU where a provider cannot start.
    return None if provider in session.get_providers() else "does not start (its libraries or its device are missing)"


def _trial_problem(device: str, name: str) -> str | None:
    """Quantize and dequantize a few numbers; return what is wrong, or None if the error is within its bound."""
    import torch
    from bitsandbytes import functional

    rows = torch.linspace(-1, 1, 64).repeat(64, 1).to(device)  # the largest value of each block is 1
    try:
        if name == "nf4":
            codes, state = functional.quantize_4bit(rows, quant_type="nf4", blocksize=64)
            back = functional.dequantize_4bit(codes, state)
        else:
            codes, scale, _ = functional.int8_vectorwise_quant(rows.half())
            back = functional.int8_vectorwise_dequant(codes, scale)
        error = float((back.float() - rows).abs().max())
    except Exception as failure:
        return _first_line(failure)
    bound = TRIAL_BOUNDS[name]
    return None if error <= bound else f"wrong numbers: the error is {error:.3g}, and at most {bound:.3g} is right"


def _is_importable(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _cache_folder() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
