"""ONNX Runtime's own static int8 quantization of optimum's export, called as its documentation shows.

Preprocess, then `quantize_static` in QDQ format, per channel, int8 weights, MinMax calibration, on its default
operators or on those given (onnxruntime.ai/docs/performance/model-optimizations/quantization.html). The preprocessing's
graph optimization and symbolic shape inference are tried first and left off, each recorded, where they fail.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import onnx_runtime
from benchmarks.contenders.component_worker import Runner
from benchmarks.contenders.job import Job

# The documentation's order: all of it, without what fails above 2 GB, without symbolic shapes, nothing but shapes.
ATTEMPTS: tuple[dict[str, bool], ...] = (
    {},
    {"skip_optimization": True},
    {"skip_symbolic_shape": True},
    {"skip_optimization": True, "skip_symbolic_shape": True},
)


def make(job: Job, operators: list[str] | None = None) -> dict[str, Any]:
    """Quantizes the component's graph; tells which preprocessing worked and what the others said."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    source = job.part("optimum") / "model.onnx"
    job.part().mkdir(parents=True, exist_ok=True)
    shutil.copyfile(job.part("optimum") / "config.json", job.part() / "config.json")
    ready = job.part() / "preprocessed" / "model.onnx"
    attempts: list[dict[str, Any]] = []
    for options in ATTEMPTS:
        attempts.append(preprocess(source, ready, options))
        if attempts[-1]["failed"] is None:
            break
    else:
        ready = source
    reader = RecordedInputs(job, ready)
    start = time.perf_counter()
    quantize_static(
        str(ready),
        str(job.part() / "model.onnx"),
        reader,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=operators,
        use_external_data_format=onnx_runtime.onnx_bytes(ready.parent) > 1.5e9,
    )
    shutil.rmtree(ready.parent, ignore_errors=ready is source)
    return {
        "call": f"quantize_static(QDQ, per_channel=True, weight_type=QInt8, op_types_to_quantize={operators})",
        "preprocessing": attempts,
        "calibration_inputs": reader.count,
        "quantize_static_s": time.perf_counter() - start,
    }


def preprocess(source: Path, to: Path, options: dict[str, bool]) -> dict[str, Any]:
    """Runs quant_pre_process in a process of its own, which may die; tells its options, seconds and how it failed."""
    shutil.rmtree(to.parent, ignore_errors=True)
    to.parent.mkdir(parents=True)
    big = onnx_runtime.onnx_bytes(source.parent) > 1.5e9
    arguments = {
        **options,
        "save_as_external_data": big,
        "all_tensors_to_one_file": big,
        "external_data_location": "model.onnx_data" if big else None,
    }
    script = (
        "import json, sys; from onnxruntime.quantization.shape_inference import quant_pre_process\n"
        "quant_pre_process(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))"
    )
    start = time.perf_counter()
    command = [sys.executable, "-c", script, str(source), str(to), json.dumps(arguments)]
    answer = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    print(answer.stderr, file=sys.stderr)
    said = [line for line in answer.stderr.splitlines() if line.strip()]
    failed = None if answer.returncode == 0 else f"return code {answer.returncode}: {said[-1] if said else 'no word'}"
    return {"options": arguments, "seconds": time.perf_counter() - start, "failed": failed}


class RecordedInputs:
    """ONNX Runtime's CalibrationDataReader over the recorded calibration inputs."""

    def __init__(self, job: Job, graph: Path):
        declared = {given.name: given for given in onnx_runtime.open_session(graph, job.threads).get_inputs()}
        files = sorted(job.inputs.glob("calibration-*.npz"))
        self.count = len(files)
        self._feeds: Iterator[Mapping[str, np.ndarray]] = (
            onnx_runtime.fit_inputs(declared, dict(np.load(file))) for file in files
        )

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next inputs, None after the last."""
        return next(self._feeds, None)


def import_libraries() -> None:
    """Imports ONNX Runtime, which is no part of loading a component."""
    onnx_runtime.import_libraries()


def load(job: Job, inputs: Mapping[str, np.ndarray], operators: list[str] | None = None) -> Runner:
    """A session over the quantized graph."""
    return onnx_runtime.load(job, inputs)
