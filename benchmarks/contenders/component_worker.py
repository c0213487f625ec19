"""The process that holds one contender's component: loads it, runs it on recorded inputs, tells seconds and bytes."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.job import Job
from benchmarks.contenders.serving import serve
from sdcompress.evaluation.worker.process_meters import peak_bytes

WARM_UPS = 2


@dataclass(frozen=True)
class Runner:
    """A loaded component: `prepare` gives the runtime its inputs, `run` is what is timed, `read` gives float32."""

    prepare: Callable[[Mapping[str, np.ndarray]], Any]
    run: Callable[[Any], Any]
    read: Callable[[Any], np.ndarray]
    size_bytes: int
    details: Mapping[str, Any]


class Worker:
    """One component, loaded once, inferring once for each request."""

    def load(self, job: str, module: str, options: dict[str, Any]) -> dict[str, Any]:
        """Loads it; answers with seconds without Python's imports, bytes of its weights and the process id."""
        task = Job.from_json(job)
        home = importlib.import_module(f"benchmarks.contenders.{module}")
        home.import_libraries()
        self._tests = [dict(np.load(file)) for file in sorted(task.inputs.glob("test-*.npz"))]
        timed = self._tests[len(self._tests) // 2]
        start = time.perf_counter()
        self._runner: Runner = home.load(task, timed, **options)
        load_s = time.perf_counter() - start
        self._timed = self._runner.prepare(timed)
        return {
            "load_s": load_s,
            "size_bytes": self._runner.size_bytes,
            "details": dict(self._runner.details),
            "pid": os.getpid(),
        }

    def warm_up(self) -> dict[str, Any]:
        """Infers twice; answers with the seconds of each, of which the first may hold a compiler's."""
        return {"seconds": [self._infer() for _ in range(WARM_UPS)]}

    def step(self) -> dict[str, Any]:
        """Infers once; answers with its seconds and this process's peak memory so far, in bytes."""
        return {"seconds": self._infer(), "peak_bytes": peak_bytes()}

    def output(self, to: str) -> dict[str, Any]:
        """Writes what comes out for each of the test inputs to `to` (.npy, float32, all in one row)."""
        found = [self._runner.read(self._runner.run(self._runner.prepare(test))).ravel() for test in self._tests]
        Path(to).parent.mkdir(parents=True, exist_ok=True)
        np.save(to, np.concatenate(found))
        return {"peak_bytes": peak_bytes()}

    def _infer(self) -> float:
        start = time.perf_counter()
        self._runner.run(self._timed)
        return time.perf_counter() - start


if __name__ == "__main__":
    worker = Worker()
    serve({"load": worker.load, "warm_up": worker.warm_up, "step": worker.step, "output": worker.output})
