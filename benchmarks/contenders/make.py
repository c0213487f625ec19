"""Making a contender's files in a process of its own, whose seconds and peak memory are thereby the making's own.

`python -m benchmarks.contenders.make NAME JOB` is that process; `make_contender` starts it and watches its memory.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.contenders.catalog import CONTENDERS, Contender
from benchmarks.contenders.inputs import read_settings
from benchmarks.contenders.job import MADE, Job
from benchmarks.contenders.serving import die_first
from sdcompress.evaluation.worker.process_meters import peak_bytes

LOG_TAIL_LINES = 15
WATCH_S = 0.2


def make_contender(
    contender: Contender, job: Job, python: str, limit_bytes: int, remake: bool = False
) -> dict[str, Any]:
    """How making it went: seconds, peak bytes, and `failed`, None or why. Made already: as kept then.

    A process whose memory, children's included, passes `limit_bytes` is ended, and that is recorded as its failure.
    What failed, or was made from another model or other inputs, is made again.
    """
    if contender.makes == "nothing":
        return {"seconds": 0.0, "peak_bytes": None, "failed": None, "details": {}}
    folder = job.folder() if contender.makes == "pipeline" else job.part()
    kept = folder / MADE
    made_from = {"model": job.model, "inputs": read_settings(job.work) if contender.calibrated else None}
    if kept.is_file() and not remake:
        made = dict(json.loads(kept.read_text(encoding="utf-8")))
        if made.get("made_from") == made_from:
            return made
    from benchmarks.full_size import commit

    shutil.rmtree(folder, ignore_errors=True)
    log = Path(job.work) / "logs" / f"make-{contender.name}-{job.component}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [python, "-m", "benchmarks.contenders.make", contender.name, job.to_json()]
    print(f"making {contender.name}", file=sys.stderr, flush=True)
    made = {"commit": commit(), "made_from": made_from, **run_watched(command, log, job.threads, limit_bytes)}
    if made["failed"] is not None:
        shutil.rmtree(folder, ignore_errors=True)
        return made
    kept.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return made


def run_watched(command: list[str], log: Path, threads: int, limit_bytes: int) -> dict[str, Any]:
    """Seconds, peak bytes, details and failure of a command that prints its peak and details as JSON."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    scratch = log.parent / "scratch"  # ONNX Runtime's preprocessing leaves gigabytes where it runs
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "TMPDIR": str(scratch)}
    environment["OMP_NUM_THREADS"] = str(threads)
    start, seen, stopped = time.perf_counter(), 0, False
    with log.open("w+", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stream,
            env=environment,
            cwd=scratch,
            text=True,
            start_new_session=True,
        )
        while process.poll() is None:
            seen = max(seen, tree_bytes(process.pid))
            if seen > limit_bytes:
                stopped = True
                end_tree(process.pid)
            time.sleep(WATCH_S)
    seconds = time.perf_counter() - start
    shutil.rmtree(scratch)
    answer = process.stdout.read() if process.stdout else ""
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if stopped:
        failed = f"stopped after {seconds:.0f} s: it needed more than {limit_bytes / 1e9:.1f} GB of memory"
    elif process.returncode == -9:
        failed = f"killed after {seconds:.0f} s at {seen / 1e9:.1f} GB, most likely for want of memory"
    elif process.returncode:
        failed = f"return code {process.returncode}: {said[-1] if said else 'no word'}"
    else:
        return {"seconds": seconds, "failed": None, **json.loads(answer.splitlines()[-1])}
    return {"seconds": seconds, "failed": failed, "peak_bytes": seen, "details": {"log": said[-LOG_TAIL_LINES:]}}


def tree_bytes(pid: int) -> int:
    """Resident bytes of a process and its children now, pages they share counted in each."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def end_tree(pid: int) -> None:
    """Kills a process and its children."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (*parent.children(recursive=True), parent):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def main(name: str, job_json: str) -> None:
    """The child's side: makes the contender and prints its peak memory in bytes and what it tells."""
    die_first()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    contender = CONTENDERS[name]
    home = importlib.import_module(f"benchmarks.contenders.{contender.module}")
    details = home.make(Job.from_json(job_json), **contender.options)
    print(json.dumps({"peak_bytes": max(peak_bytes() or 0, children_peak_bytes()), "details": details}), file=answers)


def children_peak_bytes() -> int:
    """The largest peak of any child that has ended, in bytes; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
