"""A component on OpenVINO: optimum's ONNX export converted, and NNCF's int8 of it, full and hybrid.

Runs in an environment of its own (virtual_environment.py). Shapes are fixed before compiling, as OpenVINO advises
for speed. Full: `nncf.quantize` with model_type TRANSFORMER. Hybrid, what optimum-intel does for diffusion models:
weights of linear layers and embeddings to int8, everything else quantized with its activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.component_worker import Runner
from benchmarks.contenders.job import OUTPUTS, TEXT_OUTPUTS, Job
from benchmarks.contenders.onnx_runtime import onnx_bytes


def make(job: Job, how: str, precision: str | None) -> dict[str, Any]:
    """Writes model.xml and model.bin; tells the call that made them."""
    import openvino

    if how == "convert":
        model = openvino.convert_model(job.part("optimum") / "model.onnx")
        call = "openvino.convert_model(optimum's model.onnx)"
    else:
        source = openvino.Core().read_model(job.part("openvino-fp32") / "model.xml")
        files = sorted(job.inputs.glob("calibration-*.npz"))
        samples = [feed_of(source, dict(np.load(file))) for file in files]
        model, call = (quantize if how == "quantize" else quantize_hybrid)(source, samples)
    job.part().mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, job.part() / "model.xml", compress_to_fp16=False)
    return {"call": call}


def quantize(model: Any, samples: list[dict[str, np.ndarray]]) -> tuple[Any, str]:
    """The model in int8 by NNCF's post-training quantization, and the call."""
    import nncf

    quantized = nncf.quantize(
        model, nncf.Dataset(samples), subset_size=len(samples), model_type=nncf.ModelType.TRANSFORMER
    )
    return quantized, f"nncf.quantize(model_type=TRANSFORMER, subset_size={len(samples)})"


def quantize_hybrid(model: Any, samples: list[dict[str, np.ndarray]]) -> tuple[Any, str]:
    """The model in optimum-intel's hybrid int8, and the calls."""
    import nncf

    weighted = [op.get_friendly_name() for op in model.get_ops() if has_weight(op)]
    compressed = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT8_SYM,
        ignored_scope=nncf.IgnoredScope(types=["Convolution"], validate=False),
    )
    quantized = nncf.quantize(
        compressed,
        nncf.Dataset(samples),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=weighted),
        # SmoothQuant would change weights that are compressed already.
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1)
        ),
    )
    return quantized, (
        "nncf.compress_weights(INT8_SYM, without Convolution), then nncf.quantize(model_type=TRANSFORMER, "
        f"subset_size={len(samples)}, without the compressed layers, no SmoothQuant)"
    )


def has_weight(op: Any) -> bool:
    """Whether the operation is a MatMul or Gather with a constant floating-point operand."""
    if op.get_type_name() == "MatMul":
        return any(is_constant(op.input_value(port).get_node()) for port in (0, 1))
    if op.get_type_name() == "Gather":
        floating = op.input_value(0).get_element_type().get_type_name() in ("f16", "f32", "f64")
        return floating and is_constant(op.input_value(0).get_node())
    return False


def is_constant(node: Any) -> bool:
    """Whether the node is a constant, perhaps behind a conversion."""
    while node.get_type_name() in ("Convert", "Transpose", "Reshape"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def import_libraries() -> None:
    """Imports OpenVINO, which is no part of loading a component."""
    import openvino  # noqa: F401


def load(
    job: Job, inputs: Mapping[str, np.ndarray], how: str | None, precision: str | None, files_of: str | None = None
) -> Runner:
    """The compiled model with the shapes of `inputs`; precision None leaves OpenVINO its choice for floats.

    how: "onnx" for an ONNX file as it is.
    """
    import openvino

    folder = job.part(files_of)
    core = openvino.Core()
    onnx = how == "onnx"
    model = core.read_model(folder / ("model.onnx" if onnx else "model.xml"))
    model.reshape({name: list(value.shape) for name, value in feed_of(model, inputs).items()})
    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads, "NUM_STREAMS": 1}
    if precision is not None:
        config["INFERENCE_PRECISION_HINT"] = precision
    compiled = core.compile_model(model, "CPU", config)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if precision is not None and used != precision:
        raise RuntimeError(f"OpenVINO runs in {used} on this processor although {precision} was asked for")
    names = [name for output in compiled.outputs for name in output.get_names()]
    wanted = OUTPUTS.get(job.component) or next(name for name in TEXT_OUTPUTS if name in names)
    request = compiled.create_infer_request()
    return Runner(
        prepare=lambda given: feed_of(model, given),
        run=lambda feed: request.infer(feed, share_inputs=True, share_outputs=True),
        read=lambda outputs: np.array(outputs[wanted], dtype=np.float32),
        size_bytes=onnx_bytes(folder) if onnx else openvino_bytes(folder),
        details={
            key.lower(): str(compiled.get_property(key))
            for key in ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "EXECUTION_DEVICES")
        },
    )


def feed_of(model: Any, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs in the types and ranks that the model declares."""
    feed = {}
    for port in model.inputs:
        name = port.get_any_name()
        value = np.asarray(given[name]).astype(port.get_element_type().to_dtype())
        rank = port.get_partial_shape().rank.get_length()
        feed[name] = value.reshape([1] * rank) if name == "timestep" else value
    return feed


def openvino_bytes(folder: Path) -> int:
    """Bytes of the model's two files."""
    return sum((folder / name).stat().st_size for name in ("model.xml", "model.bin"))
