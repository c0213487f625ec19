"""The advice of `sdcompress doctor` follows its rules, and names recipes that exist."""

from __future__ import annotations

from typing import Any

import pytest

from sdcompress.backends.findings import Findings
from sdcompress.environment import INSTRUCTION_SETS, instruction_sets
from sdcompress.planning import advice
from sdcompress.planning.advice import Advice, advise, traits_of
from sdcompress.planning.recipe import shipped_recipes


def cpu(family: str, *names: str) -> dict[str, bool | None]:
    return {name: name in names for name in INSTRUCTION_SETS[family]}


ZEN3 = cpu("x86", "AVX2")
ZEN5 = cpu("x86", "AVX2", "AVX-VNNI", "AVX512F", "AVX512-VNNI", "AVX512-BF16")
SAPPHIRE_RAPIDS = cpu("x86", *INSTRUCTION_SETS["x86"])
ALDER_LAKE = cpu("x86", "AVX2", "AVX-VNNI")
SKYLAKE_X = cpu("x86", "AVX2", "AVX512F")
SANDY_BRIDGE = cpu("x86")
RASPBERRY_PI_4 = cpu("arm")
GRAVITON2 = APPLE_M1 = cpu("arm", "dotprod")
GRAVITON3 = cpu("arm", "dotprod", "i8mm", "bf16", "SVE")
ORT = {"version": "1.20", "builds": ["onnxruntime"], "providers": {"CPUExecutionProvider": None}}
ORT_GPU = {
    "version": "1.20",
    "builds": ["onnxruntime-gpu"],
    "providers": {"CUDAExecutionProvider": None, "CPUExecutionProvider": None},
}


def findings(instructions: dict[str, bool | None], gpus: tuple[str, ...] = (), **changes: Any) -> Findings:
    memory_bytes = changes.pop("memory_bytes", 16e9)
    return Findings.model_validate(
        {
            "cpu": {
                "name": "a processor",
                "machine": "",
                "cores": 4,
                "memory_bytes": memory_bytes,
                "memory_available_bytes": memory_bytes,
                "instructions": instructions,
            },
            "torch": {"version": "2", "gpus": [{"kind": kind, "name": "a GPU"} for kind in gpus]},
            "onnxruntime": ORT,
            "bitsandbytes": {"version": "0.46", "trials": []},
            "versions": {"onnx": "1.17", "onnxscript": "0.3"},
            "disk": [],
            **changes,
        }
    )


def advised(found: Findings) -> dict[str, Advice]:
    names = [each.recipe for each in advise(found, shipped_recipes())]
    assert names and set(names) <= set(shipped_recipes()) and len(set(names)) == len(names)
    return {each.recipe: each for each in advise(found, shipped_recipes())}


@pytest.mark.parametrize("instructions", [ZEN5, SAPPHIRE_RAPIDS, ALDER_LAKE, GRAVITON2, GRAVITON3, APPLE_M1])
def test_processors_that_multiply_8_bit_integers_get_onnx_int8(instructions: dict[str, bool | None]) -> None:
    found = findings(instructions)
    assert "int8-cpu" in traits_of(found)
    first = next(iter(advised(found).values()))
    assert first.recipe == "onnx-int8" and not first.warnings


@pytest.mark.parametrize("instructions", [ZEN3, SKYLAKE_X])
def test_avx2_alone_gets_onnx_int8_with_a_warning_of_saturation(instructions: dict[str, bool | None]) -> None:
    suits = advised(findings(instructions))
    assert list(suits)[:3] == ["onnx-int8", "onnx-fp32", "onnx-int4"]
    assert "saturate" in suits["onnx-int8"].warnings[0] and not suits["onnx-fp32"].warnings


def test_processors_without_even_avx2_do_not_get_onnx_int8() -> None:
    for found in (findings(SANDY_BRIDGE), findings(RASPBERRY_PI_4)):
        assert traits_of(found) == {"plain-cpu"}
        assert "onnx-int8" not in advised(found) and next(iter(advised(found))) == "onnx-fp32"


@pytest.mark.parametrize(
    "instructions",
    [
        {},
        {"AVX2": True, "AVX-VNNI": None, "AVX512-VNNI": False},
        {"AVX2": None, "AVX-VNNI": False},
        instruction_sets("arm64"),
    ],
)
def test_unknown_is_not_taken_for_no(instructions: dict[str, bool | None]) -> None:
    found = findings(instructions)
    assert traits_of(found) == {"unknown-cpu"}
    assert advised(found)["onnx-int8"].warnings


def test_gpus_decide_before_the_processor() -> None:
    cuda = advised(findings(ZEN5, gpus=("cuda",), onnxruntime=ORT_GPU))
    assert list(cuda) == ["nf4", "int8", "onnx-fp16"]
    assert not any(each.warnings or each.install for each in cuda.values())
    assert list(advised(findings(APPLE_M1, gpus=("mps",)))) == ["fp16", "int8"]
    assert list(advised(findings(ZEN5, gpus=("rocm",)))) == ["fp16", "int8"]
    assert "--device xpu" in advised(findings(ZEN5, gpus=("xpu",)))["fp16"].warnings[0]


def test_a_gpu_that_does_not_answer_decides_nothing() -> None:
    broken = {"version": "2", "gpus": [{"kind": "cuda", "name": "number 0", "problem": "uncorrectable ECC error"}]}
    for torch in (broken, {"version": "2", "problem": "crashed"}):
        assert traits_of(findings(ZEN5, torch=torch)) == {"int8-cpu", "bfloat16-cpu"}


def test_little_memory_gets_8_bits() -> None:
    found = findings(ZEN3, memory_bytes=7.9e9)
    assert traits_of(found) == {"avx2-cpu", "little-memory"}
    suits = advised(found)
    assert list(suits)[:2] == ["onnx-int8", "int8"]
    assert "saturate" in suits["onnx-int8"].warnings[0]  # the reason changes, the warning stays
    assert "little-memory" not in traits_of(findings(ZEN3, memory_bytes=8.1e9))


def test_missing_packages_come_with_the_command_that_installs_them() -> None:
    bare: dict[str, Any] = {"onnxruntime": {"version": None}, "bitsandbytes": {"version": None}, "versions": {}}
    assert advised(findings(ZEN5, **bare))["onnx-int8"].install == "pip install onnx onnxscript onnxruntime"
    assert advised(findings(ZEN5, **bare))["int8"].install is None
    cuda = advised(findings(ZEN5, gpus=("cuda",), **bare))
    assert cuda["nf4"].install == "pip install bitsandbytes"
    assert cuda["onnx-fp16"].install == "pip install onnx onnxscript onnxruntime-gpu"
    wrong_build = advised(findings(ZEN5, gpus=("cuda",)))["onnx-fp16"].install
    assert wrong_build == "pip uninstall onnxruntime; pip install onnxruntime-gpu"
    assert advised(findings(ZEN5))["onnx-int8"].install is None


def test_libraries_that_do_not_work_are_told_where_they_matter() -> None:
    failed = {"version": "0.46", "trials": [{"device": "cuda", "format": "nf4", "problem": "no kernel image"}]}
    suits = advised(
        findings(ZEN5, gpus=("cuda",), bitsandbytes=failed, onnxruntime={"version": "1", "problem": "crashed"})
    )
    assert suits["nf4"].warnings == ("bitsandbytes on cuda: no kernel image",)
    assert suits["onnx-fp16"].warnings == ("ONNX Runtime does not work here: crashed",)
    assert suits["int8"].warnings == () and suits["onnx-fp16"].install is None
    both = {
        **ORT_GPU,
        "builds": ["onnxruntime", "onnxruntime-gpu"],
        "providers": {"CUDAExecutionProvider": "no libcublas"},
    }
    first, second = advised(findings(ZEN5, gpus=("cuda",), onnxruntime=both))["onnx-fp16"].warnings
    assert first.startswith("onnxruntime and onnxruntime-gpu are installed") and second.endswith("no libcublas")


def test_only_known_recipes_are_advised() -> None:
    assert [each.recipe for each in advise(findings(ZEN5), ["int8", "mixed"])] == ["int8", "mixed"]


def test_the_tables_are_about_recipes_that_exist_and_traits_that_occur() -> None:
    traits = {"cuda", "rocm", "xpu", "mps", "int8-cpu", *advice.SLOW_INT8, "little-memory", "bfloat16-cpu"}
    for rule in advice.RULES:
        assert set(rule.traits) <= traits and rule.recipe in shipped_recipes()
    assert set(advice.NOTES) <= traits
    assert set(advice.WARNINGS) <= {(trait, rule.recipe) for rule in advice.RULES for trait in rule.traits}
    sets = {name for family in INSTRUCTION_SETS.values() for name in family}
    assert {*advice.INT8_SETS, *advice.BFLOAT16_SETS} <= sets
