"""Which shipped recipes suit a machine: rules on what `doctor` found out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

INT8_SETS = ("AVX-VNNI", "AVX512-VNNI", "AMX-INT8", "dotprod", "i8mm")
BFLOAT16_SETS = ("AVX512-BF16", "AMX-BF16", "bf16")
LITTLE_MEMORY_BYTES = 8e9

SLOW_INT8 = ("avx2-cpu", "plain-cpu", "unknown-cpu")  # plain: without AVX2; unknown: the system does not tell


class Rule(NamedTuple):
    """A recipe that suits machines with one of these traits, and why, in one line."""

    traits: tuple[str, ...]
    recipe: str
    reason: str


# The advice is the rules that apply, in this order; a recipe is named once, with its first reason.
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
    Rule(
        ("avx2-cpu",), "onnx-int8", "fastest here too: 8-bit integers by AVX2, in codes that cannot saturate its sums"
    ),
    Rule(SLOW_INT8, "onnx-fp32", "speed without loss: ONNX Runtime in full precision"),
    Rule(SLOW_INT8, "onnx-int4", "smallest: weights in 4 bits, activations in float"),
    Rule(("unknown-cpu",), "onnx-int8", "small, with activations in 8 bits"),
    Rule(("int8-cpu", *SLOW_INT8), "int8", "opens with diffusers: half of float16's bytes; smaller, not faster"),
    Rule(("int8-cpu", *SLOW_INT8), "mixed", "opens with diffusers: smaller than int8 with more loss, slower"),
)
# (trait, recipe) -> a warning.
WARNINGS = {
    ("avx2-cpu", "onnx-int8"): "without VNNI 8-bit products go through vpmaddubsw, whose 16-bit sums saturate with "
    "format: int8; the recipe's int8-unsaturated cannot",
    ("unknown-cpu", "onnx-int8"): "whether this processor multiplies 8-bit integers fast is unknown: measure it first",
    ("xpu", "fp16"): "Intel GPUs are not chosen by themselves: give --device xpu",
    ("xpu", "int8"): "Intel GPUs are not chosen by themselves: give --device xpu",
}
# Trait -> a note on all recipes.
NOTES = {
    "little-memory": "Less than 8 GB of memory: open ONNX pipelines with --low-memory (in Python low_memory=True), "
    "which holds one component at a time.",
    "bfloat16-cpu": "This processor multiplies in bfloat16: with recipes that diffusers opens, try --dtype bfloat16.",
}
CUDA_PROVIDER = "CUDAExecutionProvider"


def traits_of(findings: Mapping[str, Any]) -> frozenset[str]:
    """Return the traits that RULES, WARNINGS and NOTES name: kinds of GPU or, without one, of processor; and memory."""
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
    """Return the shipped recipes that suit the machine, best first: recipe, reason, warnings, and what to install."""
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
    """Return what is wrong with the libraries that open or run a recipe's result here."""
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
    """Return the pip command for what a recipe needs and is not installed; None where nothing is missing."""
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
