"""Small graphs for tests: written as ONNX text, parameters without values, and run before and after a change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'sdcompress[onnx]')")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'sdcompress[onnx]')")

import onnx  # noqa: E402
import onnx_ir as ir  # noqa: E402

from sdcompress.backends.onnx.weights import view_of  # noqa: E402

OPSET = 23
# Sums of a few dozen float32 products of values around 1, taken in another order: some units in the last place, 2^-23.
TOLERANCE = 1e-5


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(text: str, parameters: Mapping[str, torch.Tensor]) -> ir.Model:
    """The graph of `text`, whose inputs named in `parameters` become initializers without values."""
    header = f'<ir_version: 10, opset_import: ["" : {OPSET}, "com.microsoft" : 1]>'
    written = {name.replace(".", "__"): name for name in parameters}  # in ONNX text a name has no dots
    for plain, name in written.items():
        text = text.replace(name, plain)
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(f"{header}\n{text}"), strict_mode=True)
    model = ir.from_proto(proto)
    for value in [value for value in model.graph.inputs if value.name in written]:
        value.name = written[value.name]
        assert tuple(value.shape.numpy()) == tuple(parameters[value.name].shape), value.name
        model.graph.inputs.remove(value)
        model.graph.initializers.add(value)
    return model


def run(
    model: ir.Model,
    inputs: Mapping[str, np.ndarray | torch.Tensor],
    parameters: Mapping[str, torch.Tensor] | None = None,
    *,
    watch: Sequence[ir.Value] = (),
    optimize: bool = True,
) -> list[np.ndarray]:
    """ONNX Runtime's outputs, and the values in `watch` after them; parameters are given values for the while."""
    graph = model.graph
    empty = [value for value in graph.initializers.values() if value.const_value is None]
    outputs = list(graph.outputs)
    for value in empty:
        assert parameters is not None
        viewed = view_of(value).of(parameters[view_of(value).tensor]).contiguous()
        assert tuple(viewed.shape) == tuple(value.shape.numpy()), value.name
        value.const_value = ir.tensor(viewed.numpy(), name=value.name)
    graph.outputs.extend(watch)
    try:
        data = ir.to_proto(model).SerializeToString()
    finally:
        del graph.outputs[len(outputs) :]
        for value in empty:
            value.const_value = None
    onnx.checker.check_model(data, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in inputs.items()})


OPENVINO = """
import sys
import numpy, openvino
model, given, result = sys.argv[1:]
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
numpy.save(result, *compiled({"x": numpy.load(given)}).values())
"""


def run_openvino(model: ir.Model, x: torch.Tensor, folder: Path, instructions: str) -> np.ndarray:
    """OpenVINO's output for the input `x`, by kernels that use no instructions beyond these: AVX2, or DEFAULT for all.

    A process of its own reads the limit, once (https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html).
    """
    pytest.importorskip("openvino", reason="openvino is not installed (pip install 'sdcompress[openvino]')")
    files = [str(folder / name) for name in ("model.onnx", "x.npy", "y.npy")]
    onnx.save(ir.to_proto(model), files[0])
    np.save(files[1], x.numpy())
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
    subprocess.run([sys.executable, "-c", OPENVINO, *files], env=environment, check=True)
    return np.load(files[2])


def operators(model: ir.Model) -> Counter[str]:
    """Operator -> how often the graph has it."""
    return Counter(node.op_type for node in model.graph)


def check_pass(
    apply: Callable[[ir.Model], tuple[int, int]],
    model: ir.Model,
    inputs: Mapping[str, np.ndarray | torch.Tensor],
    parameters: Mapping[str, torch.Tensor] | None = None,
    *,
    left: Mapping[str, int] | None = None,
    counts: tuple[int, int] = (1, 1),
    tolerance: float = TOLERANCE,
) -> None:
    """Apply a pass; check its counts, the operators that are left, and that the outputs keep names and values."""
    before, names = run(model, inputs, parameters), [value.name for value in model.graph.outputs]
    assert apply(model) == counts
    assert left is None or operators(model) == left
    assert [value.name for value in model.graph.outputs] == names
    for now, then in zip(run(model, inputs, parameters), before, strict=True):
        np.testing.assert_allclose(now, then, rtol=TOLERANCE, atol=tolerance if counts[1] else 0)
