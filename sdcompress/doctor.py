"""What this machine can run: processor, GPUs, libraries, room on disk; and which shipped recipes suit it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from sdcompress.environment import cpu_name, describe_cpu, describe_room, distribution_version, installed_versions

PROBE_TIMEOUT_S = 60.0
# Libraries whose probes share a process, in order: bitsandbytes needs torch, which takes seconds to import.
PROBES = (("torch", "bitsandbytes"), ("onnxruntime",))
CHILD_CODE = "from sdcompress.doctor import answer_probes; answer_probes({libraries})"
ANSWER = "sdcompress doctor: "  # begins the line with a probe's answer; libraries print lines of their own
# What torches without torch.cpu.get_capabilities can tell, by get_capabilities' names.
TORCH_QUESTIONS = {
    "avx2": "_is_avx2_supported",
    "avx512_f": "_is_avx512_supported",
    "avx512_vnni": "_is_vnni_supported",
    "avx512_bf16": "_is_avx512_bf16_supported",
    "amx_tile": "_is_amx_tile_supported",
}
ONNXRUNTIME_BUILDS = tuple(f"onnxruntime{build}" for build in ("", "-gpu", "-openvino", "-directml", "-rocm"))
# y = -x in ONNX: what a provider that only pretends to be there cannot open.
TRIAL_MODEL = bytes.fromhex(
    "080712003a320a0b0a017812017922034e65671201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a0208014204"
    "0a00100d"
)
REMOTE_PROVIDERS = ("AzureExecutionProvider",)  # calls a service
# NF4's widest gap lies between -1 and -0.6962 (QLoRA, appendix E), so nearest rounding errs by half of it at most, in
# units of the block's largest value; int8's step is 1/127. 2 % are for the float16 and float32 in between.
TRIAL_BOUNDS = {"nf4": 0.1519 * 1.02, "int8": 0.5 / 127 * 1.02}

UNKNOWN_GPU = dict.fromkeys(("kind", "name", "memory_bytes", "memory_available_bytes", "compute_capability", "problem"))

INT8_SETS = ("AVX-VNNI", "AVX512-VNNI", "AMX-INT8", "dotprod", "i8mm")
BFLOAT16_SETS = ("AVX512-BF16", "AMX-BF16", "bf16")
LITTLE_MEMORY_BYTES = 8e9

SLOW_INT8 = ("avx2-cpu", "plain-cpu", "unknown-cpu")  # plain: not even AVX2; unknown: no system told


class Rule(NamedTuple):
    """A recipe that suits machines with one of these traits, and why, in one line."""

    traits: tuple[str, ...]
    recipe: str
    reason: str


# The advice is the rules that hold, in this order; a recipe is named once, for its first reason.
RULES = (
    Rule(("cuda",), "nf4", "least GPU memory of what stock diffusers opens; bitsandbytes runs it on the GPU"),
    Rule(("cuda",), "int8", "half of float16's bytes with hardly any loss, convolutions included"),
    Rule(("cuda",), "onnx-fp16", "for ONNX Runtime on the GPU"),
    Rule(("rocm", "xpu"), "fp16", "the GPU computes in float16, and stock diffusers opens it"),
    Rule(("rocm", "xpu"), "int8", "half of float16's bytes with hardly any loss, convolutions included"),
    Rule(("mps",), "fp16", "Apple's GPU computes in float16, and stock diffusers opens it"),
    Rule(("mps",), "int8", "half of float16's bytes with hardly any loss, convolutions included"),
    Rule(
        ("int8-cpu",), "onnx-int8", "fastest here: the processor multiplies 8-bit integers (activations in 8 bits too)"
    ),
    Rule(("little-memory",), "onnx-int8", "about a quarter of float32's bytes"),
    Rule(("little-memory",), "int8", "half of float16's bytes, opens with diffusers"),
    Rule(SLOW_INT8, "onnx-fp32", "speed without loss: ONNX Runtime in full precision"),
    Rule(SLOW_INT8, "onnx-mixed", "small: 4 bits where layers bear it, float arithmetic"),
    Rule(SLOW_INT8, "onnx-int4", "smallest: weights in 4 bits, float arithmetic"),
    Rule(("avx2-cpu", "unknown-cpu"), "onnx-int8", "small, with activations in 8 bits"),
    Rule(("int8-cpu", *SLOW_INT8), "int8", "opens with diffusers: half of float16's bytes; smaller, not faster"),
    Rule(("int8-cpu", *SLOW_INT8), "mixed", "opens with diffusers: smaller than int8 with more loss, slower"),
)
# (trait, recipe) -> what to beware of.
WARNINGS = {
    ("avx2-cpu", "onnx-int8"): "without VNNI, 8-bit products go through vpmaddubsw, whose 16-bit sums saturate: "
    "quality can suffer and little time is gained",
    ("unknown-cpu", "onnx-int8"): "whether this processor multiplies 8-bit integers fast is unknown: measure it first",
    ("xpu", "fp16"): "Intel GPUs are not chosen by themselves: give --device xpu",
    ("xpu", "int8"): "Intel GPUs are not chosen by themselves: give --device xpu",
}
# Trait -> what holds whatever the recipe.
NOTES = {
    "little-memory": "Less than 8 GB of memory: open ONNX pipelines with --low-memory (in Python low_memory=True), "
    "which holds one component at a time.",
    "bfloat16-cpu": "This processor multiplies in bfloat16: with recipes that diffusers opens, try --dtype bfloat16.",
}
CUDA_PROVIDER = "CUDAExecutionProvider"


def diagnose() -> dict[str, Any]:
    """All findings and the advice, ready for JSON; sizes in bytes, None for unknown, `problem` where a probe failed."""
    from sdcompress.recipe import shipped_recipes

    with ThreadPoolExecutor() as pool:
        answers: dict[str, Any] = {}
        for told in pool.map(ask, PROBES):
            answers |= told
    instructions = answers["torch"].pop("instructions", None)
    findings: dict[str, Any] = {
        "cpu": describe_cpu(instructions),
        **answers,
        "versions": installed_versions(),
        "disk": [describe_room("current folder", Path()), describe_room("Hugging Face cache", _cache_folder())],
    }
    findings["traits"] = sorted(traits_of(findings))
    findings["advice"] = advise(findings, shipped_recipes())
    findings["notes"] = [note for trait, note in NOTES.items() if trait in findings["traits"]]
    return findings


def traits_of(findings: Mapping[str, Any]) -> frozenset[str]:
    """What RULES, WARNINGS and NOTES ask about: kinds of GPU or, without one, of processor; and its memory."""
    cpu, has = findings["cpu"], findings["cpu"]["instructions"]
    gpus = [gpu for gpu in findings["torch"].get("gpus", ()) if not gpu["problem"]]
    traits = {gpu["kind"] for gpu in gpus}
    if not gpus:
        traits.add(_cpu_trait(has))
        if any(has.get(name) for name in BFLOAT16_SETS):
            traits.add("bfloat16-cpu")
    if cpu["memory_bytes"] < LITTLE_MEMORY_BYTES:
        traits.add("little-memory")
    return frozenset(traits)


def advise(findings: Mapping[str, Any], shipped: Iterable[str]) -> list[dict[str, Any]]:
    """The shipped recipes that suit the machine, best first: recipe, reason, warnings, and what to install."""
    traits, known = traits_of(findings), set(shipped)
    chosen: dict[str, dict[str, Any]] = {}
    for rule in RULES:
        if rule.recipe in known and rule.recipe not in chosen and traits.intersection(rule.traits):
            warnings = [text for (trait, name), text in WARNINGS.items() if name == rule.recipe and trait in traits]
            chosen[rule.recipe] = {
                "recipe": rule.recipe,
                "reason": rule.reason,
                "warnings": warnings + _library_warnings(rule.recipe, findings),
                "install": _install(rule.recipe, findings),
            }
    return list(chosen.values())


def _cpu_trait(has: Mapping[str, bool | None]) -> str:
    int8 = [has[name] for name in INT8_SETS if name in has]
    if any(int8):
        return "int8-cpu"
    if not int8 or None in (*int8, has.get("AVX2", False)):
        return "unknown-cpu"
    return "avx2-cpu" if has.get("AVX2") else "plain-cpu"


def _library_warnings(recipe: str, findings: Mapping[str, Any]) -> list[str]:
    """What is wrong with the libraries that open or run a recipe's result here."""
    on_cuda = "cuda" in traits_of(findings)
    if recipe == "nf4":
        found = findings["bitsandbytes"]
        trials = [each for each in found.get("trials", ()) if each["format"] == "nf4"]
        failed = [each for each in trials if each["problem"] and each["device"] == ("cuda" if on_cuda else "cpu")]
        return _problem("bitsandbytes", found) + [f"bitsandbytes on {t['device']}: {t['problem']}" for t in failed]
    if not recipe.startswith("onnx-"):
        return []
    found = findings["onnxruntime"]
    warnings = _problem("ONNX Runtime", found)
    if len(found.get("builds", ())) > 1:
        warnings.append(f"{' and '.join(found['builds'])} are installed into the same folder: uninstall all, keep one")
    problem = found.get("providers", {}).get(CUDA_PROVIDER)
    return warnings + ([f"{CUDA_PROVIDER}: {problem}"] if on_cuda and problem else [])


def _problem(name: str, found: Mapping[str, Any]) -> list[str]:
    return [f"{name} does not work here: {found['problem']}"] if found.get("problem") else []


def _install(recipe: str, findings: Mapping[str, Any]) -> str | None:
    """The pip command for what a recipe needs and is not installed; None when nothing is missing."""
    if recipe == "nf4":
        return None if _is_installed(findings["bitsandbytes"]) else "pip install bitsandbytes"
    if not recipe.startswith("onnx-"):
        return None
    missing = [name for name in ("onnx", "onnxscript") if name not in findings["versions"]]
    found, remove = findings["onnxruntime"], ""
    if "cuda" in traits_of(findings):
        if CUDA_PROVIDER not in found.get("providers", {}) and not found.get("problem"):
            missing.append("onnxruntime-gpu")
            remove = f"pip uninstall {' '.join(found['builds'])}; " if found.get("builds") else ""
    elif not _is_installed(found):
        missing.append("onnxruntime")
    return f"{remove}pip install {' '.join(missing)}" if missing else None


def _is_installed(found: Mapping[str, Any]) -> bool:
    return bool(found.get("version") or found.get("problem"))


def ask(libraries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Library -> its probe's answer, all from one process of their own.

    `version` is None for what is not installed; `problem` says how a probe failed, crashed or was late.
    """
    answers: dict[str, dict[str, Any]] = {library: {"version": None} for library in libraries}
    installed = [library for library in libraries if _is_importable(library)]
    told, failure = _run_probes(installed) if installed else ({}, "")
    for library in installed:
        answers[library] = {"version": distribution_version(library), **told.get(library, {"problem": failure})}
    return answers


def answer_probes(libraries: Sequence[str]) -> None:
    """Prints each library's answer on a line of its own, for the process that `ask` started."""
    for library in libraries:
        try:
            answer = globals()[f"probe_{library}"]()
        except Exception as error:
            answer = {"problem": f"{type(error).__name__}: {_first_line(error)}"}
        print(f"\n{ANSWER}{json.dumps({library: answer})}", flush=True)


def _run_probes(libraries: Sequence[str]) -> tuple[dict[str, dict[str, Any]], str]:
    """Library -> answer of those that answered, and what happened to the others."""
    import psutil

    child = subprocess.Popen(
        [sys.executable, "-c", CHILD_CODE.format(libraries=list(libraries))],
        cwd=Path(__file__).parent.parent,  # so that no file of the user's folder is taken for a library
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    try:
        out, err = child.communicate(timeout=PROBE_TIMEOUT_S)
        failure = _obituary(child.returncode, err)
    except subprocess.TimeoutExpired:
        for process in (*psutil.Process(child.pid).children(recursive=True), child):  # compilers it started, too
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        out, failure = child.communicate()[0], f"no answer within {PROBE_TIMEOUT_S:.0f} s"
    told: dict[str, dict[str, Any]] = {}
    for line in out.splitlines():
        if line.startswith(ANSWER):
            told |= json.loads(line.removeprefix(ANSWER))
    return told, failure


def _obituary(code: int, log: str) -> str:
    if code < 0:
        return f"its process died of signal {signal.Signals(-code).name}"
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "no message")
    return f"{last} (exit code {code})"


def probe_torch() -> dict[str, Any]:
    """torch's version, what it says of the processor, its GPUs with memory in bytes, and remarks on those."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):
        told = {name: value for name, value in torch.cpu.get_capabilities().items() if isinstance(value, bool)}
    else:  # older ones answer one question at a time
        told = {key: getattr(torch.cpu, name)() for key, name in TORCH_QUESTIONS.items() if hasattr(torch.cpu, name)}
    gpus = []
    if torch.cuda.is_available():
        kind = "rocm" if torch.version.hip else "cuda"
        gpus += [_describe_gpu(kind, torch.cuda, index) for index in range(torch.cuda.device_count())]
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        gpus += [_describe_gpu("xpu", torch.xpu, index) for index in range(torch.xpu.device_count())]
    if torch.backends.mps.is_available():
        recommended = getattr(torch.mps, "recommended_max_memory", None)
        gpus.append({**UNKNOWN_GPU, "kind": "mps", "name": cpu_name(), "memory_bytes": recommended and recommended()})
    remarks = gpu_remarks(torch.version.cuda, torch.cuda.is_available(), shutil.which("nvidia-smi") is not None)
    return {"version": torch.__version__, "instructions": told, "gpus": gpus, "remarks": remarks}


def gpu_remarks(cuda_build: str | None, available: bool, driver: bool) -> list[str]:
    """What explains that torch has no NVIDIA GPU: its build, or the driver."""
    if available or not (cuda_build or driver):
        return []
    if not cuda_build:
        return ["an NVIDIA driver is here, but this torch is not built for it: install a build with CUDA"]
    return [f"torch is built for CUDA {cuda_build} and finds no such GPU" + ("; check the driver" if driver else "")]


def probe_onnxruntime() -> dict[str, Any]:
    """ONNX Runtime's version, its builds that are installed, and per provider None or why it does not work."""
    import onnxruntime  # type: ignore[import-untyped]

    builds = [name for name in ONNXRUNTIME_BUILDS if distribution_version(name) is not None]
    providers = {
        name: "not tried: it calls a service" if name in REMOTE_PROVIDERS else _provider_problem(onnxruntime, name)
        for name in onnxruntime.get_available_providers()
    }
    return {"version": onnxruntime.__version__, "builds": builds, "providers": providers}


def probe_bitsandbytes() -> dict[str, Any]:
    """bitsandbytes' version, and trials of its formats on each device: None or why it does not work."""
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
        return {**UNKNOWN_GPU, "kind": kind, "name": f"number {index}", "problem": _first_line(error)}
    return {
        **UNKNOWN_GPU,
        "kind": kind,
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "memory_available_bytes": free_bytes,
        "compute_capability": f"{properties.major}.{properties.minor}" if kind == "cuda" else None,
    }


def _provider_problem(onnxruntime: Any, provider: str) -> str | None:
    try:
        session = onnxruntime.InferenceSession(TRIAL_MODEL, providers=[provider])
    except Exception as error:
        return _first_line(error)
    # ONNX Runtime goes on with the CPU where a provider cannot start.
    return None if provider in session.get_providers() else "does not start (its libraries or its device are missing)"


def _trial_problem(device: str, name: str) -> str | None:
    """What goes wrong when a few numbers are quantized and back; None when the error keeps within its bound."""
    import torch
    from bitsandbytes import functional

    rows = torch.linspace(-1, 1, 64).repeat(64, 1).to(device)  # every block's largest value is 1
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
    return None if error <= bound else f"wrong numbers: off by {error:.3g} where {bound:.3g} is the most"


def _is_importable(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _cache_folder() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
