"""Measure everything on a GPU: `make gpu`, or

    python -m benchmarks.gpu --out OUT [--device cuda] [--small] [--minutes 8] [--parts sd15 ...] [--commit HASH]

The parts run one after another, the most valuable first, each in a process of its own with a time limit. OUT gets one
JSON file for each (result_file.py says what is in it), at most seven, written whenever something was measured. A part
that fails or is late costs only itself. The exit code is 0 if every part did all it was to do, else 1.

This module needs nothing but Python: packages that are missing are installed from benchmarks/gpu/wheels/ into a
temporary folder, without a network. `--small` is for tests: tiny shapes and few rounds, also on a CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import PARTS
from benchmarks.gpu.result_file import read_result, write_result
from benchmarks.gpu.wheels import PRESENT, ROOT, WHEELS, pinned

# Part -> its seconds at most, and the seconds that are kept for it whatever the parts before it take.
LIMITS_S = {
    "tests": (150, 60),
    "sd15": (100, 60),
    "sdxl": (130, 75),
    "sd15-compiled": (100, 50),
    "tiny-sd": (190, 130),
    "training": (80, 45),
    "sdxl-compiled": (200, 0),
}
SHORTEST_S = 15  # a part with less than that is not begun
LOG_LINES = 60


def main() -> int:
    """Run the parts that the command line asks for, and return the exit code."""
    arguments = parse()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.time() + 60 * arguments.minutes
    with working_folder() as work:
        environment = child_environment(work)
        about = {
            "command": f"python -m benchmarks.gpu {' '.join(sys.argv[1:])}".strip(),
            "commit": arguments.commit or commit(),
            "device": arguments.device,
            "small": arguments.small,
            "card": describe_cards(),
        }
        good = True
        for position, name in enumerate(arguments.parts):
            kept_s = sum(LIMITS_S[later][1] for later in arguments.parts[position + 1 :])
            limit_s = min(float(LIMITS_S[name][0]), deadline - time.time() - kept_s)
            result = run_part(name, out / f"{name}.json", work, environment, about, limit_s)
            good &= result["status"] == "done"
            print(f"{name}: {result['status']}, {result['seconds']:.0f} s", flush=True)
            for what, error in result["errors"].items():
                print(f"  {what}: {error.strip().splitlines()[-1]}", flush=True)
    print(f"written: {out}")
    return 0 if good else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result files")
    parser.add_argument("--device", default="cuda", choices=("cuda", "mps", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny shapes and few rounds, to see that it works")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--commit", help="what the result files name (default: git's HEAD)")
    return parser.parse_args()


def run_part(
    name: str, file: Path, work: Path, environment: dict[str, str], about: dict[str, Any], limit_s: float
) -> dict[str, Any]:
    """Run a part in a process of its own, and return the content of its result file."""
    begun = time.time()
    content = {"part": name, "status": "running", "errors": {}, "log_tail": [], **about}
    content |= {"started": now(), "ended": None, "seconds": 0.0, "limit_s": limit_s, "environment": {}, "results": {}}
    write_result(file, content)
    log = work / f"{name}.log"
    if limit_s >= SHORTEST_S:
        command = [sys.executable, "-m", "benchmarks.gpu.part", str(file), str(work), str(begun + limit_s)]
        status = run_limited(command, log, environment, limit_s)
    else:
        status = "no time was left"
    content = read_result(file) or content
    if status:
        content["errors"][name] = status
        content["status"] = "timed out" if "time" in status else "failed"
    if content["status"] != "done" and log.exists():
        content["log_tail"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    content |= {"ended": now(), "seconds": round(time.time() - begun, 1)}
    write_result(file, content)
    return content


def run_limited(command: Sequence[str], log: Path, environment: dict[str, str], limit_s: float) -> str:
    """Run the command with its output in `log`; kill it and its children at the limit.

    Returns:
        What went wrong with the process; empty if nothing did.
    """
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"the time limit of {limit_s:.0f} s was reached"
        finally:
            kill_group(child)
    return f"the process ended with exit code {code}" if code else ""


def kill_group(child: subprocess.Popen[Any]) -> None:
    """Kill the process and all that it started, as far as they still run."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@contextmanager
def working_folder() -> Iterator[Path]:
    """Yield a temporary folder, and remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="sdcompress-gpu-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def child_environment(work: Path) -> dict[str, str]:
    """Return the environment of the parts: this checkout, missing packages from the wheels, and caches in `work`."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if absent := [name for name in PRESENT if not is_installed(name)]:
        print(f"missing, though it was expected here: {', '.join(absent)}", file=sys.stderr, flush=True)
    if missing := [name for name in pinned() if not is_installed(name)]:
        wheels = sorted(map(str, WHEELS.glob("*.whl")))
        if not wheels:
            raise SystemExit(f"{', '.join(missing)}: not installed, and {WHEELS} has no wheels; run make gpu-wheels")
        site = work / "site"
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(site)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=True)
        paths.insert(0, str(site))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "SDCOMPRESS_CACHE": str(work / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
        "TRITON_CACHE_DIR": str(work / "triton"),
    }


def is_installed(name: str) -> bool:
    """Return whether any version of the package is installed."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def describe_cards() -> list[dict[str, Any]]:
    """Return name, driver and memory in bytes of each GPU that nvidia-smi knows; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]
    return [
        {"name": row[0], "driver": row[1], "memory_bytes": int(row[2]) * 2**20}
        for row in rows
        if len(row) == 3 and row[2].isdigit()
    ]


def commit() -> str:
    """Return the checkout's commit; `unknown` where git or its folder is missing."""
    try:
        answer = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return answer.stdout.strip() or "unknown"


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


if __name__ == "__main__":
    raise SystemExit(main())
