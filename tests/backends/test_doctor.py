"""`sdcompress doctor` tells what it finds, and tells what is unknown as unknown."""

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
from sdcompress.planning.recipe import shipped_recipes


@pytest.fixture
def child_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(doctor, "_is_importable", lambda library: library != "absent")
    yield lambda code: monkeypatch.setattr(doctor, "CHILD_CODE", code.replace("{", "{{").replace("}", "}}"))


def said(library: str, answer: dict[str, Any]) -> str:
    return f"print({doctor.ANSWER + json.dumps({library: answer})!r}, flush=True)\n"


def test_answers_are_found_among_what_libraries_print(child_code: Any) -> None:
    child_code("print('Welcome!')\n" + said("torch", {"version": "9.9"}) + "print('bye')")
    assert doctor.ask(["torch", "absent"]) == {"torch": {"version": "9.9"}, "absent": {"version": None}}


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals to die of")
def test_a_crash_takes_only_what_had_not_answered(child_code: Any) -> None:
    child_code(said("torch", {"version": "9.9"}) + "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    answers = doctor.ask(["torch", "bitsandbytes"])
    assert answers["torch"] == {"version": "9.9"}
    assert answers["bitsandbytes"]["problem"] == "its process was ended by signal SIGILL"


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
    monkeypatch.setitem(sys.modules, "torch", fake_torch(cpu=SimpleNamespace()))  # of a version that cannot tell
    assert doctor.probe_torch()["instructions"] == {}


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
    assert (
        doctor.probe_bitsandbytes()["trials"][0]["problem"]
        == "wrong numbers: the error is 0.16, and at most 0.155 is right"
    )


def test_probes_that_all_fail_do_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHILD_CODE", "raise SystemExit('no')")
    monkeypatch.setattr(doctor, "_is_importable", lambda library: True)
    found = doctor.find_out()
    for library in (found.torch, found.onnxruntime, found.bitsandbytes):
        assert library.problem == "no (exit code 1)"
    assert (found.cpu.cores or 0) >= 1 and (found.disk[0].free_bytes or 0) > 0
    assert "gpus" not in found.to_dict()["torch"]  # unknown, which is not none


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
