"""`diagnose` and its parts: what is found is told, what is unknown is told as unknown, and advice follows its rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdcompress.backends import doctor
from sdcompress.environment import INSTRUCTION_SETS, instruction_sets
from sdcompress.planning import advice
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


# The probes


@pytest.fixture
def child_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(doctor, "_is_importable", lambda library: library != "absent")
    yield lambda code: monkeypatch.setattr(doctor, "CHILD_CODE", code.replace("{", "{{").replace("}", "}}"))


def said(library: str, answer: dict[str, Any]) -> str:
    return f"print({doctor.ANSWER + json.dumps({library: answer})!r}, flush=True)\n"


def test_answers_are_found_among_what_libraries_print(child_code: Any) -> None:
    child_code("print('Welcome!')\n" + said("torch", {"version": "9.9"}) + "print('bye')")
    assert doctor.ask(["torch"]) == {"torch": {"version": "9.9"}}


def test_what_is_not_installed_is_not_asked(child_code: Any) -> None:
    child_code("raise SystemExit(1)")
    assert doctor.ask(["absent"]) == {"absent": {"version": None}}


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals to die of")
def test_a_crash_takes_only_what_had_not_answered(child_code: Any) -> None:
    child_code(said("torch", {"version": "9.9"}) + "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    answers = doctor.ask(["torch", "bitsandbytes"])
    assert answers["torch"] == {"version": "9.9"}
    assert answers["bitsandbytes"]["problem"] == "its process died of signal SIGILL"


def test_an_early_end_is_told_with_its_last_line(child_code: Any) -> None:
    child_code("import sys; sys.exit('libcudart.so.12: cannot open shared object file\\n')")
    problem = doctor.ask(["torch"])["torch"]["problem"]
    assert problem == "libcudart.so.12: cannot open shared object file (exit code 1)"


def test_a_late_probe_is_ended_with_what_it_started(child_code: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 3.0)
    child_code(
        said("torch", {"version": "9.9"})
        + "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(100)'])"
    )
    started = time.perf_counter()
    answers = doctor.ask(["torch", "bitsandbytes"])
    assert time.perf_counter() - started < 60
    assert answers["torch"] == {"version": "9.9"} and answers["bitsandbytes"]["problem"] == "no answer within 3 s"


def test_a_probe_that_raises_does_not_stop_the_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> dict[str, Any]:
        raise OSError("a DLL is missing\nand more")

    monkeypatch.setattr(doctor, "probe_torch", fail)
    monkeypatch.setattr(doctor, "probe_onnxruntime", lambda: {"version": "1"})
    doctor.answer_probes(["torch", "onnxruntime"])
    lines = [line.removeprefix(doctor.ANSWER) for line in capsys.readouterr().out.splitlines() if line]
    assert [json.loads(line) for line in lines] == [
        {"torch": {"problem": "OSError: a DLL is missing"}},
        {"onnxruntime": {"version": "1"}},
    ]


def fake_torch(**changes: Any) -> SimpleNamespace:
    absent = SimpleNamespace(is_available=lambda: False)
    parts = {
        "__version__": "9.9",
        "version": SimpleNamespace(cuda=None, hip=None),
        "cpu": SimpleNamespace(get_capabilities=lambda: {"avx2": True, "cpu_name": "x", "l2_cache_size": 1}),
        "cuda": absent,
        "xpu": absent,
        "backends": SimpleNamespace(mps=absent),
        "mps": SimpleNamespace(recommended_max_memory=lambda: 11_000),
    }
    return SimpleNamespace(**{**parts, **changes})


def cards(*names: str) -> SimpleNamespace:
    def properties(index: int) -> SimpleNamespace:
        if names[index] == "broken":
            raise RuntimeError("uncorrectable ECC error\nCompile with TORCH_USE_CUDA_DSA")
        return SimpleNamespace(name=names[index], total_memory=24_000, major=8, minor=9)

    return SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: len(names),
        get_device_properties=properties,
        mem_get_info=lambda index: (20_000, 24_000),
    )


def test_gpus_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(cuda=cards("RTX 4090", "broken")))
    card, broken = doctor.probe_torch()["gpus"]
    assert card == {
        "kind": "cuda",
        "name": "RTX 4090",
        "memory_bytes": 24_000,
        "memory_available_bytes": 20_000,
        "compute_capability": "8.9",
        "problem": None,
    }
    assert (broken["kind"], broken["problem"]) == ("cuda", "uncorrectable ECC error")
    rocm = fake_torch(cuda=cards("MI300X"), version=SimpleNamespace(cuda=None, hip="6.4"))
    monkeypatch.setitem(sys.modules, "torch", rocm)
    assert [(gpu["kind"], gpu["compute_capability"]) for gpu in doctor.probe_torch()["gpus"]] == [("rocm", None)]
    monkeypatch.setitem(sys.modules, "torch", fake_torch(xpu=cards("Arc B580")))
    assert [(gpu["kind"], gpu["name"]) for gpu in doctor.probe_torch()["gpus"]] == [("xpu", "Arc B580")]
    apple = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: True))
    monkeypatch.setitem(sys.modules, "torch", fake_torch(backends=apple))
    (gpu,) = doctor.probe_torch()["gpus"]
    assert (gpu["kind"], gpu["memory_bytes"], gpu["memory_available_bytes"]) == ("mps", 11_000, None)


def test_what_torch_says_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    assert doctor.probe_torch()["instructions"] == {"avx2": True}
    old = SimpleNamespace(_is_avx2_supported=lambda: True, _is_vnni_supported=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", fake_torch(cpu=old))
    assert doctor.probe_torch()["instructions"] == {"avx2": True, "avx512_vnni": False}


def test_remarks_explain_a_missing_gpu() -> None:
    assert doctor.gpu_remarks("12.6", available=True, driver=True) == []
    assert doctor.gpu_remarks(None, available=False, driver=False) == []
    assert "install a build with CUDA" in doctor.gpu_remarks(None, available=False, driver=True)[0]
    assert doctor.gpu_remarks("12.6", available=False, driver=False) == [
        "torch is built for CUDA 12.6 and finds no such GPU"
    ]


def test_a_provider_works_only_if_a_session_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def __init__(self, model: bytes, providers: list[str]):
            assert model == doctor.TRIAL_MODEL
            if providers == ["DmlExecutionProvider"]:
                raise RuntimeError("no adapter\nat line 3")
            self.kept = ["CPUExecutionProvider"]

        def get_providers(self) -> list[str]:
            return self.kept

    names = ["CUDAExecutionProvider", "DmlExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]
    fake = SimpleNamespace(__version__="1.20", InferenceSession=Session, get_available_providers=lambda: names)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    assert doctor.probe_onnxruntime()["providers"] == {
        "CUDAExecutionProvider": "does not start (its libraries or its device are missing)",
        "DmlExecutionProvider": "no adapter",
        "AzureExecutionProvider": "not tried: it calls a service",
        "CPUExecutionProvider": None,
    }


def test_the_trial_model_runs_and_negates() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    import numpy as np

    session = onnxruntime.InferenceSession(doctor.TRIAL_MODEL, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([3], np.float32)})[0].tolist() == [-3]


def fake_bitsandbytes(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("no kernel for this device")

    functional = SimpleNamespace(
        quantize_4bit=lambda rows, **_: (rows, None),
        dequantize_4bit=lambda rows, _: rows + error,
        int8_vectorwise_quant=broken,
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(__version__="0.99", functional=functional))


def test_bitsandbytes_must_give_back_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_bitsandbytes(monkeypatch, error=0.15)  # below half of NF4's widest gap
    (nf4, int8) = doctor.probe_bitsandbytes()["trials"][:2]
    assert nf4 == {"device": "cpu", "format": "nf4", "problem": None}
    assert int8 == {"device": "cpu", "format": "int8", "problem": "no kernel for this device"}
    fake_bitsandbytes(monkeypatch, error=0.16)
    assert doctor.probe_bitsandbytes()["trials"][0]["problem"] == "wrong numbers: off by 0.16 where 0.155 is the most"


# The advice

ONNX_RECIPES = ("onnx-fp32", "onnx-fp16", "onnx-int8", "onnx-int4", "onnx-mixed")
TORCH_RECIPES = ("fp16", "int8", "nf4", "nf4-conv", "mixed", "pruned-int8")
VERSIONS = {"onnx": "1.17", "onnxscript": "0.3"}
ORT = {"version": "1.20", "builds": ["onnxruntime"], "providers": {"CPUExecutionProvider": None}}
ORT_GPU = {
    "version": "1.20",
    "builds": ["onnxruntime-gpu"],
    "providers": {"CUDAExecutionProvider": None, "CPUExecutionProvider": None},
}


def findings(instructions: dict[str, bool | None], gpus: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    return {
        "cpu": {"instructions": instructions, "memory_bytes": changes.pop("memory_bytes", 16e9)},
        "torch": {"version": "2", "gpus": [{**doctor.UNKNOWN_GPU, "kind": kind, "name": "a GPU"} for kind in gpus]},
        "onnxruntime": ORT,
        "bitsandbytes": {"version": "0.46", "trials": []},
        "versions": VERSIONS,
        **changes,
    }


def advised(
    found: dict[str, Any], shipped: tuple[str, ...] = TORCH_RECIPES + ONNX_RECIPES
) -> dict[str, dict[str, Any]]:
    return {advice["recipe"]: advice for advice in doctor.advise(found, shipped)}


@pytest.mark.parametrize(
    "found",
    [
        findings(ZEN5),
        findings(SAPPHIRE_RAPIDS),
        findings(ALDER_LAKE),
        findings(GRAVITON2),
        findings(GRAVITON3),
        findings(APPLE_M1),
    ],
)
def test_processors_that_multiply_8_bit_integers_get_onnx_int8(found: dict[str, Any]) -> None:
    assert "int8-cpu" in doctor.traits_of(found)
    advice = advised(found)
    assert next(iter(advice)) == "onnx-int8" and not advice["onnx-int8"]["warnings"]
    assert "fastest" in advice["onnx-int8"]["reason"]


@pytest.mark.parametrize("name", [ZEN3, SKYLAKE_X])
def test_avx2_alone_gets_onnx_int8_with_a_warning_of_saturation(name: str) -> None:
    suits = advised(findings(name))
    assert list(suits)[:3] == ["onnx-int8", "onnx-fp32", "onnx-int4"]
    assert "saturate" in suits["onnx-int8"]["warnings"][0]
    assert not suits["onnx-fp32"]["warnings"]


def test_processors_without_even_avx2_do_not_get_onnx_int8() -> None:
    for found in (findings(SANDY_BRIDGE), findings(RASPBERRY_PI_4)):
        assert doctor.traits_of(found) == {"plain-cpu"}
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
    assert doctor.traits_of(found) == {"unknown-cpu"}
    assert "measure it first" in advised(found)["onnx-int8"]["warnings"][0]


def test_gpus_decide_before_the_processor() -> None:
    cuda = advised(findings(ZEN5, gpus=("cuda",), onnxruntime=ORT_GPU))
    assert list(cuda) == ["nf4", "int8", "onnx-fp16"]
    assert not any(advice["warnings"] or advice["install"] for advice in cuda.values())
    assert list(advised(findings(APPLE_M1, gpus=("mps",)))) == ["fp16", "int8"]
    assert list(advised(findings(ZEN5, gpus=("rocm",)))) == ["fp16", "int8"]
    assert "--device xpu" in advised(findings(ZEN5, gpus=("xpu",)))["fp16"]["warnings"][0]


def test_a_gpu_that_does_not_answer_decides_nothing() -> None:
    found = findings(ZEN5, gpus=("cuda",))
    found["torch"]["gpus"][0]["problem"] = "uncorrectable ECC error"
    assert doctor.traits_of(found) == {"int8-cpu", "bfloat16-cpu"}
    without_torch = findings(ZEN5, torch={"version": "2", "problem": "crashed"})
    assert doctor.traits_of(without_torch) == {"int8-cpu", "bfloat16-cpu"}


def test_little_memory_gets_8_bits() -> None:
    found = findings(ZEN3, memory_bytes=7.9e9)
    assert doctor.traits_of(found) == {"avx2-cpu", "little-memory"}
    advice = advised(found)
    assert list(advice)[:2] == ["onnx-int8", "int8"]
    assert "saturate" in advice["onnx-int8"]["warnings"][0]  # the reason changes, the warning stays
    assert "little-memory" not in doctor.traits_of(findings(ZEN3, memory_bytes=8.1e9))


def test_missing_packages_come_with_the_command_that_installs_them() -> None:
    bare = {"onnxruntime": {"version": None}, "bitsandbytes": {"version": None}, "versions": {}}
    assert advised(findings(ZEN5, **bare))["onnx-int8"]["install"] == "pip install onnx onnxscript onnxruntime"
    assert advised(findings(ZEN5, **bare))["int8"]["install"] is None
    cuda = advised(findings(ZEN5, gpus=("cuda",), **bare))
    assert cuda["nf4"]["install"] == "pip install bitsandbytes"
    assert cuda["onnx-fp16"]["install"] == "pip install onnx onnxscript onnxruntime-gpu"
    wrong_build = advised(findings(ZEN5, gpus=("cuda",)))["onnx-fp16"]["install"]
    assert wrong_build == "pip uninstall onnxruntime; pip install onnxruntime-gpu"
    assert advised(findings(ZEN5))["onnx-int8"]["install"] is None


def test_libraries_that_do_not_work_are_told_where_they_matter() -> None:
    failed = {"version": "0.46", "trials": [{"device": "cuda", "format": "nf4", "problem": "no kernel image"}]}
    advice = advised(
        findings(ZEN5, gpus=("cuda",), bitsandbytes=failed, onnxruntime={"version": "1", "problem": "crashed"})
    )
    assert advice["nf4"]["warnings"] == ["bitsandbytes on cuda: no kernel image"]
    assert advice["onnx-fp16"]["warnings"] == ["ONNX Runtime does not work here: crashed"]
    assert advice["int8"]["warnings"] == [] and advice["onnx-fp16"]["install"] is None
    both = {
        **ORT_GPU,
        "builds": ["onnxruntime", "onnxruntime-gpu"],
        "providers": {"CUDAExecutionProvider": "no libcublas"},
    }
    first, second = advised(findings(ZEN5, gpus=("cuda",), onnxruntime=both))["onnx-fp16"]["warnings"]
    assert first.startswith("onnxruntime and onnxruntime-gpu are installed") and second.endswith("no libcublas")


@pytest.mark.parametrize("shipped", [tuple(shipped_recipes()), TORCH_RECIPES])
def test_advice_names_shipped_recipes_alone_and_each_once(shipped: tuple[str, ...]) -> None:
    for trait in {trait for rule in advice.RULES for trait in rule.traits} & {"cuda", "rocm", "xpu", "mps"}:
        for memory_bytes in (4e9, 64e9):
            names = [
                a["recipe"] for a in doctor.advise(findings(ZEN3, gpus=(trait,), memory_bytes=memory_bytes), shipped)
            ]
            assert names and set(names) <= set(shipped) and len(set(names)) == len(names)
    for found in (findings(ZEN5), findings(ZEN3), findings(SANDY_BRIDGE), findings(GRAVITON3), findings({})):
        names = [advice["recipe"] for advice in doctor.advise(found, shipped)]
        assert names and set(names) <= set(shipped) and len(set(names)) == len(names)


def test_the_tables_are_about_recipes_that_exist_and_traits_that_occur() -> None:
    traits = {"cuda", "rocm", "xpu", "mps", "int8-cpu", *advice.SLOW_INT8, "little-memory", "bfloat16-cpu"}
    recipes = {*shipped_recipes(), *ONNX_RECIPES}
    for rule in advice.RULES:
        assert set(rule.traits) <= traits and rule.recipe in recipes and "\n" not in rule.reason
    assert {trait for trait, _ in advice.WARNINGS} | set(advice.NOTES) <= traits
    pairs = {(trait, rule.recipe) for rule in advice.RULES for trait in rule.traits}
    assert set(advice.WARNINGS) <= pairs
    sets = {name for family in INSTRUCTION_SETS.values() for name in family}
    assert {*advice.INT8_SETS, *advice.BFLOAT16_SETS} <= sets


# The whole


def test_diagnose_survives_probes_that_all_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHILD_CODE", "raise SystemExit('no')")
    monkeypatch.setattr(doctor, "_is_importable", lambda library: True)
    found = json.loads(json.dumps(doctor.diagnose()))
    for library in ("torch", "onnxruntime", "bitsandbytes"):
        assert found[library]["problem"] == "no (exit code 1)"
    assert found["cpu"]["cores"] >= 1 and found["disk"][0]["free_bytes"] > 0 and found["advice"]


def test_the_command_tells_this_machine_and_ends_with_0(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemError('not a library')")  # a file of the user's is no library
    result = subprocess.run(
        [sys.executable, "-m", "sdcompress", "doctor", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(doctor.__file__).parent.parent)},
        timeout=200,
    )
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    found = json.loads(result.stdout)
    assert found["torch"]["version"] and "problem" not in found["torch"] and "instructions" not in found["torch"]
    assert found["versions"]["diffusers"] and found["cpu"]["memory_bytes"] > 0
    assert {advice["recipe"] for advice in found["advice"]} <= set(shipped_recipes()) and found["advice"]
    assert all(
        trial["problem"] is None for trial in found["bitsandbytes"].get("trials", ()) if trial["device"] == "cpu"
    )
    if found["onnxruntime"]["version"]:
        assert found["onnxruntime"]["providers"]["CPUExecutionProvider"] is None
