"""OpenVINO folders as diffusers pipelines: choosing the device, compiling models, and running them on tensors."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from sdcompress.backends.onnx.loading import open_graphs
from sdcompress.backends.onnx.runtime import RunnableGraph
from sdcompress.errors import ArtifactError, UserError
from sdcompress.sources.openvino_file import MODEL_FILE

if TYPE_CHECKING:
    import torch

# --dtype -> INFERENCE_PRECISION_HINT. By default, OpenVINO computes float32 graphs in bfloat16 if the CPU can.
PRECISIONS = {"auto": "f32", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}
DEVICES = ("cpu", "gpu", "npu")
_TORCH_DTYPES = {"f32": "float32", "f16": "float16", "f64": "float64", "i64": "int64", "i32": "int32",
                 "boolean": "bool"}  # fmt: skip


@dataclass
class OpenVinoRuntime:
    """The device and the settings of a pipeline's models; with `low_memory` also the one compiled model."""

    device: str  # one of DEVICES
    precision: str  # a value of PRECISIONS
    threads: int
    low_memory: bool
    open_graph: OpenVinoGraph | None = field(default=None, repr=False)
    model_file: ClassVar[str] = MODEL_FILE

    @property
    def torch_device(self) -> torch.device:
        """The device of tensors outside of the models."""
        import torch

        return torch.device("cpu")

    def graph(self, file: Path) -> OpenVinoGraph:
        """Return the graph in `file`, which runs in this runtime."""
        return OpenVinoGraph(file, self)


def open_openvino_pipeline(
    folder: Path, device: str = "auto", dtype: str = "auto", threads: int | None = None, low_memory: bool = False
) -> Any:
    """Return the stock diffusers pipeline of an OpenVINO folder, ready to be called.

    Args:
        device, dtype, threads, low_memory: see `choose_openvino_runtime`.

    Raises:
        ArtifactError: the folder cannot be opened.
        UserError: the device is missing.
    """
    runtime = choose_openvino_runtime(device, dtype, threads, low_memory)
    return open_graphs(folder, cast("Any", runtime))  # it has all that components use of a Runtime


def choose_openvino_runtime(
    device: str = "auto", dtype: str = "auto", threads: int | None = None, low_memory: bool = False
) -> OpenVinoRuntime:
    """Return the runtime for a device (`auto`: the CPU) and a type of computation.

    Raises:
        UserError: OpenVINO or the device is missing, or cannot compute in that type.
    """
    import torch

    name = {"auto": "cpu", "openvino": "cpu"}.get(device, device)
    if name not in DEVICES:
        raise UserError(f"--device {device}: an OpenVINO folder runs on auto, {', '.join(DEVICES)}")
    if dtype not in PRECISIONS:
        raise UserError(f"--dtype {dtype}: an OpenVINO folder computes in {', '.join(PRECISIONS)}")
    available = import_openvino().Core().available_devices
    if not any(each.split(".")[0] == name.upper() for each in available):
        raise UserError(f"--device {device}: OpenVINO finds {', '.join(available)} here; use --device cpu")
    return OpenVinoRuntime(name, PRECISIONS[dtype], threads or torch.get_num_threads(), low_memory)


def import_openvino() -> Any:
    """Return the module openvino. UserError if it is not installed."""
    if importlib.util.find_spec("openvino") is None:
        raise UserError("OpenVINO folders need the package openvino; pip install 'sdcompress[openvino]'")
    import openvino

    return openvino


class OpenVinoGraph(RunnableGraph):
    """One openvino_model.xml, which is compiled at once, or with `low_memory` at the first run."""

    def run(self, inputs: Mapping[str, torch.Tensor], names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Run the model and return output -> tensor (`names` None: all); inputs are cast to the model's types."""
        import torch

        compiled = self._open()
        wanted = list(self.outputs if names is None else names)
        given = {
            name: tensor.detach().to("cpu", self.inputs[name][0]).contiguous().numpy()
            for name, tensor in inputs.items()
        }
        results = compiled(given)
        return {name: torch.from_numpy(results[compiled.output(name)]) for name in wanted}

    def tensors_ending(self, ending: str) -> list[torch.Tensor]:
        """Return the model's constants whose names end with `ending`, read from its files."""
        import torch

        model = import_openvino().Core().read_model(self.file)
        found = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
        return [torch.from_numpy(op.data.copy()) for op in found if op.get_friendly_name().endswith(ending)]

    def _start(self) -> Any:
        compiled = compile_model(self.file, self.runtime)
        self._inputs = _dtypes_and_ranks(self.file, compiled.inputs)
        self._outputs = _dtypes_and_ranks(self.file, compiled.outputs)
        return compiled


def compile_model(file: Path, runtime: OpenVinoRuntime) -> Any:
    """Return the model in `file` (IR or ONNX), compiled for the runtime. ArtifactError if OpenVINO cannot open it."""
    openvino = import_openvino()
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": runtime.precision}
    if runtime.device == "cpu":
        options["INFERENCE_NUM_THREADS"] = runtime.threads
    try:
        return openvino.Core().compile_model(file, runtime.device.upper(), options)
    except RuntimeError as error:
        raise ArtifactError(f"{file}: OpenVINO cannot open it: {' '.join(str(error).split())}") from error


def _dtypes_and_ranks(file: Path, ports: Iterable[Any]) -> dict[str, tuple[torch.dtype, int | None]]:
    import torch

    found: dict[str, tuple[torch.dtype, int | None]] = {}
    for port in ports:
        kind, rank = port.get_element_type().get_type_name(), port.get_partial_shape().rank
        if kind not in _TORCH_DTYPES:
            raise ArtifactError(f"{file}: {port.get_any_name()} is {kind}, a type that no component of a pipeline has")
        for name in sorted(port.get_names()):
            found[name] = (getattr(torch, _TORCH_DTYPES[kind]), None if rank.is_dynamic else rank.get_length())
    return found
