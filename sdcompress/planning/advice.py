"""Which shipped recipes suit a machine: rules about what `sdcompress doctor` finds out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sdcompress.backends.findings import Finding, Findings, LibraryFindings

INT8_SETS = ("AVX-VNNI", "AVX512-VNNI", "AMX-INT8", "dotprod", "i8mm")
BFLOAT16_SETS = ("AVX512-BF16", "AMX-BF16", "bf16")
LITTLE_MEMORY_BYTES = 8e9

SLOW_INT8 = ("avx2-cpu", "plain-cpu", "unknown-cpu")  # plain: not even AVX2; unknown: could not be found out


class Rule(NamedTuple):
    """A recipe that suits machines with one of these traits, and the reason in one line."""

    traits: tuple[str, ...]
    recipe: str
    reason: str


# The rules that hold make the advice, in this order. A recipe is named once, with its first reason.
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
# (trait, recipe) -> warning.
WARNINGS = {
    ("avx2-cpu", "onnx-int8"): "without VNNI 8-bit products go through vpmaddubsw, whose 16-bit sums saturate with "
    "format: int8; the recipe's int8-unsaturated cannot",
    ("unknown-cpu", "onnx-int8"): "whether this processor multiplies 8-bit integers fast is unknown: measure it first",
    ("xpu", "fp16"): "Intel GPUs are not chosen by themselves: give --device xpu",
    ("xpu", "int8"): "Intel GPUs are not chosen by themselves: give --device xpu",
}
# Trait -> what is true with any recipe.
NOTES = {
    "little-memory": "Less than 8 GB of memory: open ONNX pipelines with --low-memory (in Python low_memory=True), "
    "which holds one component at a time.",
    "bfloat16-cpu": "This processor multiplies in bfloat16: with recipes that diffusers opens, try --dtype bfloat16.",
}
CUDA_PROVIDER = "CUDAExecutionProvider"


class Advice(Finding):
    """A recipe that suits the machine; `install` is the command for what it needs and is missing."""

    recipe: str
    reason: str
    warnings: tuple[str, ...]
    install: str | None


class Diagnosis(Findings):
    """The findings about a machine, its traits, the recipes that suit it (best first), and notes."""

    traits: tuple[str, ...]
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]


def with_advice(findings: Findings, shipped: Iterable[str]) -> Diagnosis:
    """Return the findings with the machine's traits, advice and notes.

    Args:
        shipped: the names of the recipes that may be advised.
    """
    traits = traits_of(findings)
    return Diagnosis(
        **{name: getattr(findings, name) for name in Findings.model_fields},
        traits=tuple(sorted(traits)),
        advice=tuple(advise(findings, shipped)),
        notes=tuple(note for trait, note in NOTES.items() if trait in traits),
    )


def traits_of(findings: Findings) -> frozenset[str]:
    """Return the traits in RULES, WARNINGS and NOTES that the machine has.

    They are the kinds of its GPUs or, if it has none, of its processor; and whether it has little memory.
    """
    gpus = [gpu for gpu in findings.torch.gpus or () if not gpu.problem]
    traits: set[str] = {gpu.kind for gpu in gpus}
    if not gpus:
        has = findings.cpu.instructions
        traits.add(_cpu_trait(has))
        if any(has.get(name) for name in BFLOAT16_SETS):
            traits.add("bfloat16-cpu")
    if findings.cpu.memory_bytes < LITTLE_MEMORY_BYTES:
        traits.add("little-memory")
    return frozenset(traits)


def advise(findings: Findings, shipped: Iterable[str]) -> list[Advice]:
    """Return the recipes that suit the machine, best first."""
    traits, known = traits_of(findings), set(shipped)
    chosen: dict[str, Advice] = {}
    for rule in RULES:
        if rule.recipe in known and rule.recipe not in chosen and traits.intersection(rule.traits):
            warnings = [text for (trait, name), text in WARNINGS.items() if name == rule.recipe and trait in traits]
            chosen[rule.recipe] = Advice(
                recipe=rule.recipe,
                reason=rule.reason,
                warnings=(*warnings, *_library_warnings(rule.recipe, findings)),
                install=_install(rule.recipe, findings),
            )
    return list(chosen.values())


def _cpu_trait(has: Mapping[str, bool | None]) -> str:
    int8 = [has[name] for name in INT8_SETS if name in has]
    if any(int8):
        return "int8-cpu"
    if not int8 or None in (*int8, has.get("AVX2", False)):
        return "unknown-cpu"
    return "avx2-cpu" if has.get("AVX2") else "plain-cpu"


def _library_warnings(recipe: str, findings: Findings) -> list[str]:
    """Return what is wrong with the libraries that open or run what the recipe makes."""
    on_cuda = "cuda" in traits_of(findings)
    if recipe == "nf4":
        trials = [each for each in findings.bitsandbytes.trials if each.format == "nf4"]
        failed = [each for each in trials if each.problem and each.device == ("cuda" if on_cuda else "cpu")]
        warnings = _problem("bitsandbytes", findings.bitsandbytes)
        return warnings + [f"bitsandbytes on {each.device}: {each.problem}" for each in failed]
    if not recipe.startswith("onnx-"):
        return []
    found = findings.onnxruntime
    warnings = _problem("ONNX Runtime", found)
    if len(found.builds) > 1:
        warnings.append(f"{' and '.join(found.builds)} are installed into the same folder: uninstall all, keep one")
    problem = found.providers.get(CUDA_PROVIDER)
    return warnings + ([f"{CUDA_PROVIDER}: {problem}"] if on_cuda and problem else [])


def _problem(name: str, found: LibraryFindings) -> list[str]:
    return [f"{name} does not work here: {found.problem}"] if found.problem else []


def _install(recipe: str, findings: Findings) -> str | None:
    """Return the pip command for what the recipe needs and is not installed; None if nothing is missing."""
    if recipe == "nf4":
        return None if findings.bitsandbytes.installed else "pip install bitsandbytes"
    if not recipe.startswith("onnx-"):
        return None
    missing = [name for name in ("onnx", "onnxscript") if name not in findings.versions]
    found, remove = findings.onnxruntime, ""
    if "cuda" in traits_of(findings):
        if CUDA_PROVIDER not in found.providers and not found.problem:
            missing.append("onnxruntime-gpu")
            remove = f"pip uninstall {' '.join(found.builds)}; " if found.builds else ""
    elif not found.installed:
        missing.append("onnxruntime")
    return f"{remove}pip install {' '.join(missing)}" if missing else None
