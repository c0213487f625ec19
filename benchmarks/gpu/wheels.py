"""Gather the wheels of the packages that a bare GPU machine lacks, and say how large they and the checkout are.

    python -m benchmarks.gpu.wheels

Needs the network, and any Python with pip: the wheels are for Python 3.12 on Linux x86-64, whatever gathers them. They
go to benchmarks/gpu/wheels/, which git ignores. The exit code is 1 if a package is missing, or if wheels and checkout
together are larger than LARGEST_BYTES.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
WHEELS = Path(__file__).with_name("wheels")
LARGEST_BYTES = 64 * 2**20  # what is copied to such a machine
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

# What sdcompress, its tests and the packages of requirements.txt need, and such a machine has.
PRESENT = (
    *("accelerate", "filelock", "huggingface_hub", "jinja2", "markupsafe", "matplotlib", "numpy", "onnx"),
    *("onnxruntime", "peft", "pillow", "psutil", "pytest", "pytest-timeout", "pytest-xdist", "pyyaml", "regex"),
    *("requests", "rich", "safetensors", "scipy", "torch", "torchmetrics", "tqdm", "transformers", "typer"),
    "typing_extensions",
)


def main() -> int:
    """Gather the wheels, print the sizes, and return the exit code."""
    for old in WHEELS.glob("*.whl"):
        old.unlink()
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", "3.12", *platforms]
    answer = subprocess.run([*command, "--dest", str(WHEELS), "--requirement", str(REQUIREMENTS)])
    wheels = sorted(WHEELS.glob("*.whl"))
    if answer.returncode or len(wheels) != len(pinned()):
        print(f"{len(wheels)} of {len(pinned())} wheels were gathered", file=sys.stderr)
        return 1
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:6.2f} MiB  {wheel.name}")
    of_wheels, of_checkout = sum(wheel.stat().st_size for wheel in wheels), checkout_bytes()
    total = of_wheels + of_checkout
    print(
        f"{len(wheels)} wheels of {of_wheels / 2**20:.1f} MiB and a checkout of {of_checkout / 2**20:.1f} MiB: "
        f"{total / 2**20:.1f} of {LARGEST_BYTES / 2**20:.0f} MiB"
    )
    if total > LARGEST_BYTES:
        print("that is too large for such a machine; make the checkout smaller", file=sys.stderr)
        return 1
    return 0


def pinned() -> dict[str, str]:
    """Return package -> version of the packages to gather."""
    lines = (line.split("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==") for line in lines if line)


def checkout_bytes() -> int:
    """Return the bytes of the files that git knows or would add."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    files = (ROOT / name for name in names if name)
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


if __name__ == "__main__":
    raise SystemExit(main())
