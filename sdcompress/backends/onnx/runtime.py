"""ONNX Runtime sessions: choosing the device, opening a session, and running it on torch tensors."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sdcompress.errors import ArtifactError, UserError

if TYPE_CHECKING:
    import torch

# Device -> execution provider, and the package that has it.
PROVIDERS: dict[str, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "mps": ("CoreMLExecutionProvider", "onnxruntime (its macOS wheel)"),
    "directml": ("DmlExecutionProvider", "onnxruntime-directml"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
}
TORCH_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
STANDARD_ATTENTION = "update ONNX Runtime, or compress again with `attention: standard` in the recipe's export step"

# The messages in which ONNX Runtime names an operator without a kernel or a schema.
_OPERATOR = re.compile(
    r"implementation for (?P<kernel>[\w.:]+)\(|(?P<schema>[\w.:]+)\(-?\d+\) is not a registered|No Op registered for "
    r"(?P<op>[\w.:]+)"
)
_OPSET = re.compile(r"Opset (?P<opset>\d+) is under development")


@dataclass
class Runtime:
    """The device and the settings of a pipeline's sessions; with `low_memory` also the one open session."""

    device: str  # a key of PROVIDERS
    provider: str
    device_id: int
    threads: int
    low_memory: bool
    open_graph: RunnableGraph | None = field(default=None, repr=False)
    model_file: ClassVar[str] = "model.onnx"

    def graph(self, file: Path) -> RunnableGraph:
        """Return the graph in `file`, which runs in this runtime."""
        return RunnableGraph(file, self)

    @property
    def torch_device(self) -> torch.device:
        """The device of tensors outside of sessions: the GPU if torch can use it too, else the CPU."""
        import torch

        if self.device == "cuda" and torch.cuda.is_available():
            return torch.device("cuda", self.device_id)
        return torch.device("cpu")


def choose_runtime(device: str = "auto", threads: int | None = None, low_memory: bool = False) -> Runtime:
    """Return the runtime for a device.

            Args: device: a key of PROVIDERS, `cuda:N`, or `auto`: CUDA if this ONNX Runtime has it and torch finds a
            GPU, else DirectML, else the CPU. `auto` does not choose CoreML (`mps`) or OpenVINO, since they may be
            slower on graphs whose sizes change. threads: threads on the CPU; None for as many as torch uses.
            low_memory: keep at most one session open.

    Raises:
        UserError: ONNX Runtime or the device is missing.
    """
    import torch  # before onnxruntime: it loads the CUDA libraries that both use

    onnxruntime = import_onnxruntime()
    available = onnxruntime.get_available_providers()
    name, _, number = device.partition(":")
    if device == "auto":
        wanted = ["cuda"] if torch.cuda.is_available() else []
        name = next(each for each in (*wanted, "directml", "cpu") if PROVIDERS[each][0] in available)
    if name not in PROVIDERS or (number and not (name == "cuda" and number.isdecimal())):
        raise UserError(f"--device {device}: use auto, {', '.join(PROVIDERS)} or cuda:N")
    provider, package = PROVIDERS[name]
    if provider not in available:
        raise UserError(
            f"--device {device}: this ONNX Runtime has no {provider}; pip install {package} (in place of any other "
            f"onnxruntime package), or use --device cpu"
        )
    return Runtime(name, provider, int(number or 0), threads or torch.get_num_threads(), low_memory)


def import_onnxruntime() -> Any:
    """Return the module onnxruntime. UserError if it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError("an ONNX pipeline needs ONNX Runtime; pip install 'sdcompress[onnx]'")
    import onnxruntime  # type: ignore[import-untyped]

    return onnxruntime


class RunnableGraph:
    """One model.onnx and its session, which opens at once, or with `low_memory` at the first run."""

    def __init__(self, file: Path, runtime: Any):  # a Runtime or an OpenVinoRuntime
        self.file = file
        self.runtime = runtime
        self._session: Any = None
        self._inputs: dict[str, tuple[torch.dtype, int | None]] = {}
        self._outputs: dict[str, tuple[torch.dtype, int | None]] = {}
        if not runtime.low_memory:
            self._open()

    @property
    def inputs(self) -> dict[str, tuple[torch.dtype, int | None]]:
        """Input -> its dtype and rank; the rank is None if the file does not state it."""
        if not self._inputs:
            self._open()
        return self._inputs

    @property
    def outputs(self) -> dict[str, tuple[torch.dtype, int | None]]:
        """Output -> its dtype and rank; the rank is None if the file does not state it."""
        if not self._outputs:
            self._open()
        return self._outputs

    def run(self, inputs: Mapping[str, torch.Tensor], names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Run the graph and return output -> tensor, on the runtime's torch device.

        Args:
            inputs: input -> tensor; cast to the dtype that the graph takes.
            names: the outputs to return; None for all.
        """
        session = self._open()
        wanted = list(self.outputs if names is None else names)
        device = self.runtime.torch_device
        given = {
            name: tensor.detach().to(device=device, dtype=self.inputs[name][0]).contiguous()
            for name, tensor in inputs.items()
        }
        if device.type != "cuda":
            import torch

            arrays = session.run(wanted, {name: tensor.numpy() for name, tensor in given.items()})
            return {name: torch.from_numpy(array) for name, array in zip(wanted, arrays, strict=True)}
        return _run_on_cuda(session, given, wanted, self.runtime.device_id)

    def release(self) -> None:
        """Close the session. The next run opens it again."""
        self._session = None

    def tensors_ending(self, ending: str) -> list[torch.Tensor]:
        """Return the graph's tensors whose names end with `ending`, read from its files."""
        import onnx
        import torch
        from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

        graph = onnx.load(str(self.file), load_external_data=False).graph
        found = [tensor for tensor in graph.initializer if tensor.name.endswith(ending)]
        for tensor in found:
            if uses_external_data(tensor):
                load_external_data_for_tensor(tensor, str(self.file.parent))
        return [torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in found]

    def _open(self) -> Any:
        runtime = self.runtime
        if self._session is None:
            if runtime.low_memory:
                if runtime.open_graph is not None:
                    runtime.open_graph.release()
                runtime.open_graph = self
            self._session = self._start()
        return self._session

    def _start(self) -> Any:
        """Return a session for the graph, and note its inputs and outputs."""
        session = open_session(self.file, self.runtime)
        self._inputs = {each.name: _dtype_and_rank(self.file, each) for each in session.get_inputs()}
        self._outputs = {each.name: _dtype_and_rank(self.file, each) for each in session.get_outputs()}
        return session


def open_session(file: Path, runtime: Runtime) -> Any:
    """Return an InferenceSession of `file` on the runtime's provider.

    Operators that the provider lacks run on the CPU. A provider that does not start is an error.

    Raises:
        UserError: the provider cannot run the graph.
        ArtifactError: ONNX Runtime cannot open the file.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone; warnings are one line per operator, about its device
    options.intra_op_num_threads = runtime.threads
    # Threads that spin between operators slow down torch's part of a step and other programs: on two busy cores,
    # tiny-sd took 1.3 times the CPU time and 1.5 times the wall time with them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if runtime.low_memory:
        options.enable_cpu_mem_arena = False  # the arena never frees memory: a sixth of tiny-sd's peak
    if runtime.device == "directml":
        options.enable_mem_pattern = False  # DirectML does not support it (its documentation, "Configuration options")
    providers: list[Any] = [runtime.provider]
    if runtime.device == "cuda":
        providers = [(runtime.provider, {"device_id": str(runtime.device_id)})]
    if runtime.device != "cpu":
        providers.append("CPUExecutionProvider")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers, enable_fallback=0)
    except _errors_of_onnxruntime() as error:
        raise _opening_error(file, runtime, str(error)) from error
    if runtime.provider not in session.get_providers():
        raise UserError(
            f"{file}: {runtime.provider} did not start (see the log above; CUDA and cuDNN must be of the versions that "
            f"this ONNX Runtime was built for), so it would run on the CPU; use --device cpu if that is meant"
        )
    return session


def _run_on_cuda(
    session: Any, inputs: Mapping[str, torch.Tensor], wanted: list[str], device_id: int
) -> dict[str, torch.Tensor]:
    """Run on the tensors where they are, through IO binding; nothing is copied to the CPU."""
    import numpy as np
    import torch

    binding = session.io_binding()
    for name, tensor in inputs.items():
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        binding.bind_input(name, "cuda", device_id, dtype, tuple(tensor.shape), tensor.data_ptr())
    for name in wanted:
        binding.bind_output(name, "cuda", device_id)
    torch.cuda.current_stream(device_id).synchronize()  # ONNX Runtime computes on a stream of its own
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    # Not the public class, which lacks DLPack in older versions.
    outputs = zip(wanted, binding.get_outputs(), strict=True)
    return {name: torch.utils.dlpack.from_dlpack(value._ortvalue) for name, value in outputs}


def _dtype_and_rank(file: Path, value: Any) -> tuple[torch.dtype, int | None]:
    import torch

    if value.type not in TORCH_DTYPES:
        raise ArtifactError(
            f"{file}: {value.name} is a {value.type}, a type that no component of a pipeline has; export it again"
        )
    return getattr(torch, TORCH_DTYPES[value.type]), None if value.shape is None else len(value.shape)


def _errors_of_onnxruntime() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[import-untyped]

    names = (
        "EPFail Fail InvalidArgument InvalidGraph InvalidProtobuf NoModel NoSuchFile NotImplemented RuntimeException"
    )
    # A provider that fails to start raises plain RuntimeError or ValueError.
    return (*(getattr(state, name) for name in names.split()), RuntimeError, ValueError)


def _opening_error(file: Path, runtime: Runtime, message: str) -> UserError:
    """Return the error for a failure to open a session: what failed, and what to do."""
    found = _OPERATOR.search(message)
    if found:
        operator = found["kernel"] or found["schema"] or found["op"]
        return UserError(f"{file}: {runtime.provider} has no operator {operator}; {STANDARD_ATTENTION}")
    opset = _OPSET.search(message)
    if opset:
        return UserError(
            f"{file}: is of ONNX opset {opset['opset']}, which this ONNX Runtime does not know; {STANDARD_ATTENTION}"
        )
    return ArtifactError(f"{file}: ONNX Runtime cannot open it on {runtime.provider}: {' '.join(message.split())}")
