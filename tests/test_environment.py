"""The machine: what the system tells is reported, and what it does not tell is unknown, not denied."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sdcompress import environment
from sdcompress.environment import (
    cpu_name,
    describe_disk,
    describe_environment,
    instruction_sets,
    usable_cores,
    usable_memory_bytes,
)

# The line of instruction sets in /proc/cpuinfo of these processors, shortened -> those that matter here.
LINUX = [
    ("x86_64", "flags\t\t: fpu sse2 avx fma avx2 vaes rdpid", {"AVX2"}),  # Zen 3
    (
        "x86_64",
        "flags\t\t: sse2 avx2 avx512f avx512dq avx_vnni avx512_bf16 avx512_vbmi2 avx512_vnni",  # Zen 5
        {"AVX2", "AVX-VNNI", "AVX512F", "AVX512-VNNI", "AVX512-BF16"},
    ),
    (
        "x86_64",
        "flags\t\t: avx2 avx512f avx_vnni avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8",  # Sapphire Rapids
        set(environment.INSTRUCTION_SETS["x86"]),
    ),
    ("x86_64", "flags\t\t: fpu sse2 ssse3 aes avx\nvmx flags\t: vnmi avx512_vnni", set()),  # Sandy Bridge
    ("aarch64", "Features\t: fp asimd crc32 cpuid", set()),  # Cortex-A72
    (
        "aarch64",
        "Features\t: fp asimd asimddp sve svei8mm i8mm bf16",
        {"dotprod", "i8mm", "bf16", "SVE"},
    ),  # Graviton3
    ("aarch64", "Features\t: asimd asimddp sve i8mm bf16\n\nFeatures\t: asimd asimddp", {"dotprod"}),  # unequal cores
]

ARM_CPUINFO = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"
LSCPU = "Architecture:  aarch64\nVendor ID:     ARM\nModel name:    Neoverse-V1\nModel name:    Neoverse-N1\n"


@pytest.mark.parametrize(("machine", "cpuinfo", "expected"), LINUX)
def test_linux_tells_every_instruction_set(machine: str, cpuinfo: str, expected: set[str]) -> None:
    found = instruction_sets(machine, cpuinfo)
    assert None not in found.values()
    assert {name for name, there in found.items() if there} == expected


def test_torch_tells_what_other_systems_do_not() -> None:
    told = {"sse2": True, "avx2": True, "avx512_f": False, "avx_vnni": True}
    found = instruction_sets("AMD64", torch=told)
    assert {name for name, there in found.items() if there} == {"AVX2", "AVX-VNNI"}
    assert found["AVX512F"] is False and found["AVX512-VNNI"] is None
    assert instruction_sets("x86_64", LINUX[0][1], torch=told)["AVX-VNNI"] is False  # the system knows better
    assert instruction_sets("arm64", torch={"neon": True, "dot": True, "sve": False})["dotprod"] is True


@pytest.mark.parametrize(("machine", "count"), [("x86_64", 8), ("AMD64", 8), ("arm64", 4), ("riscv64", 0)])
def test_what_nobody_tells_is_unknown(machine: str, count: int) -> None:
    silent = {"sse2": False, "neon": False, "avx2": False, "dot": False}  # a torch that could not look
    for found in (instruction_sets(machine), instruction_sets(machine, "processor: 0\n", silent)):
        assert list(found.values()) == [None] * count


@pytest.mark.parametrize(
    ("system", "cpuinfo", "command", "output", "name"),
    [
        ("linux", "model name\t: AMD Ryzen 7 5800X\n", "", "", "AMD Ryzen 7 5800X"),
        ("linux", ARM_CPUINFO, "lscpu", LSCPU, "ARM Neoverse-V1 + ARM Neoverse-N1"),
        ("darwin", "", "sysctl", "machdep.cpu.brand_string: Apple M2\n", "Apple M2"),
    ],
)
def test_the_processors_name_is_that_of_the_system(
    system: str, cpuinfo: str, command: str, output: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(environment, "_output_of", lambda *called: output if called[0] == command else "")
    monkeypatch.setattr(sys, "platform", system)
    assert cpu_name() == name


def test_a_processor_without_a_name_has_its_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))  # neither lscpu nor sysctl
    assert cpu_name()


def test_a_containers_limits_count(tmp_path: Path) -> None:
    cores, memory_bytes = usable_cores(tmp_path), usable_memory_bytes(tmp_path)
    assert cores is not None and cores >= 1
    assert memory_bytes == describe_environment()["memory_bytes"]
    first, second = tmp_path / "first", tmp_path / "second"  # the two versions of Linux' control groups
    for file, content in {
        first / "cpu.max": "50000 100000\n",
        first / "memory.max": "4096000\n",
        second / "cpu" / "cpu.cfs_quota_us": "50000\n",
        second / "cpu" / "cpu.cfs_period_us": "100000\n",
        second / "memory" / "memory.limit_in_bytes": "4096000\n",
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    for folder in (first, second):
        assert (usable_cores(folder), usable_memory_bytes(folder)) == (1, 4_096_000)
    (first / "cpu.max").write_text("max 100000\n")
    (first / "memory.max").write_text("max\n")
    assert (usable_cores(first), usable_memory_bytes(first)) == (cores, memory_bytes)


def test_free_bytes_are_those_of_the_nearest_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = describe_disk("cache", tmp_path / "not" / "yet")
    assert disk["free_bytes"] > 0 and disk["problem"] is None and disk["path"] == str(tmp_path / "not" / "yet")

    def refuse(_: Path) -> None:
        raise PermissionError("Permission denied")

    monkeypatch.setattr(environment.shutil, "disk_usage", refuse)
    disk = describe_disk("cache", tmp_path)
    assert disk["free_bytes"] is None and disk["problem"] == "Permission denied"
