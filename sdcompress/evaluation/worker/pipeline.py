"""One pipeline in a worker process: opened, drawn with, and measured meanwhile."""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.backends.black_pictures import DecoderGuard, to_pixels
from sdcompress.calibration.input_pictures import (
    PictureRequest,
    always_given,
    check_steps,
    fewest_steps,
    make_pictures,
)
from sdcompress.evaluation.samples import DrawnPicture, OpenedPipeline
from sdcompress.evaluation.worker.energy import EnergyMeter
from sdcompress.evaluation.worker.process_meters import ComponentClock, peak_bytes, resident_bytes, synchronize
from sdcompress.evaluation.worker.requests import (
    Draw,
    Nothing,
    Open,
    Prepare,
    Recorded,
    Replay,
    Replayed,
    SaveRecording,
)
from sdcompress.evaluation.worker.same_noise import same_noise

if TYPE_CHECKING:
    from sdcompress.evaluation.worker.component_recording import Recorder

WARM_UP_STEPS = 2


class PipelineWorker:
    """The pipeline that this process holds."""

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._guard: DecoderGuard
        self._clock: ComponentClock
        self._recorder: Recorder | None = None
        self._counts_device_memory = False
        self._peak_is_its_own = True  # until this process holds more than one pipeline that draws

    def prepare(self, request: Prepare) -> Nothing:
        """Import what the pipeline's classes need."""
        _import_classes(Path(request.path))
        return Nothing()

    def open(self, request: Open) -> OpenedPipeline:
        """Open the pipeline, an earlier one having left memory."""
        import torch

        from sdcompress.backends.open_pipeline import open_pipeline

        folder = Path(request.path)
        of_graphs = _import_classes(folder) is not None
        if self._pipeline is not None:
            self._peak_is_its_own = False
            self._recorder = None
            del self._pipeline, self._guard, self._clock  # they hold the components
            gc.collect()
            if self._counts_device_memory:
                torch.cuda.reset_peak_memory_stats()
        after_imports = resident_bytes()
        start = time.perf_counter()
        pipeline = open_pipeline(
            request.path, device=request.device, dtype=request.dtype, threads=request.threads,
            low_memory=request.low_memory, variant=request.variant,
        )  # fmt: skip
        if request.swap is not None and request.swap_from is not None:
            _swap_component(pipeline, request.swap, Path(request.swap_from), request.threads, of_graphs)
        device = torch.device(pipeline.device)
        self._device = device.type
        # Tensors may be elsewhere than ONNX Runtime computes, and torch does not count the memory it takes there.
        ran_on = _device_of_graphs(pipeline) if of_graphs else self._device
        self._counts_device_memory = self._device == "cuda" and not of_graphs
        if self._device == "cuda":
            torch.cuda.set_device(device)  # whose time, memory and energy the meters ask for
        synchronize(self._device)
        load_s = time.perf_counter() - start
        after_open = resident_bytes()

        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline
        self._accepts = inspect.signature(pipeline.__call__).parameters
        self._class = type(pipeline).__name__
        self._guard = DecoderGuard(pipeline)
        self._clock = ComponentClock(self._device)
        for name, component in pipeline.components.items():
            for method in ("decode", "encode") if name.startswith("vae") else ("forward",):
                if callable(getattr(component, method, None)):
                    self._clock.watch(name, component, method)
        self._energy = EnergyMeter(ran_on)
        self._rounds_products = False
        if not request.timed and self._device == "cpu" and request.dtype == "bfloat16":
            from sdcompress.evaluation.worker.bfloat16 import is_fast

            self._rounds_products = not is_fast()
        return OpenedPipeline(
            load_s=load_s,
            resident_after_imports_bytes=after_imports,
            resident_after_open_bytes=after_open,
            peak_memory_bytes=self._peak(),
            resident_weights_bytes=_weights_bytes(pipeline),
            pipeline_class=self._class,
            device=ran_on,
            device_name=torch.cuda.get_device_name() if self._device == "cuda" else None,
            dtype=str(getattr(pipeline, "dtype", "")).removeprefix("torch."),
            threads=torch.get_num_threads(),
            energy_source=self._energy.source,
            defaults={
                name: self._accepts[name].default
                for name in ("num_inference_steps", "guidance_scale", "strength")
                if name in self._accepts
            },
        )

    def draw(self, request: Draw) -> DrawnPicture:
        """Draw the pictures, and save the first as PNG."""
        import torch

        arguments = self._arguments(request.options, request.warm_up)
        drawings, pipeline = request.drawings, self._pipeline
        one = len(drawings) == 1
        prompts = [drawing.prompt for drawing in drawings]
        generators = [torch.Generator("cpu").manual_seed(drawing.seed) for drawing in drawings]
        pictures = [
            make_pictures(pipeline, drawing.inputs or PictureRequest(drawing.seed), request.options)
            for drawing in drawings
        ]
        arguments |= {name: each if one else [every[name] for every in pictures] for name, each in pictures[0].items()}
        self._clock.take()
        synchronize(self._device)
        energy = self._energy.begin()
        start = time.perf_counter()
        # Recording keeps tensors for later, which inference mode would forbid to use elsewhere.
        without_gradients = torch.no_grad() if request.record else torch.inference_mode()
        with self._recording(request.record), self._arithmetic(), without_gradients, same_noise(pipeline) as noise:
            output = pipeline(
                prompt=prompts[0] if one else prompts,
                generator=generators[0] if one else generators,
                output_type="np",
                **arguments,
            )
        synchronize(self._device)
        latency_s = time.perf_counter() - start
        pixels, seen = to_pixels(output.images[0])
        if request.picture is not None:
            _save(pixels, request.picture)
        return DrawnPicture(
            latency_s=latency_s,
            energy_j=self._energy.end(energy),
            component_latency_s=self._clock.take(),
            latents_sha256=noise.sha256,
            vae_upcast=self._guard.upcast,
            blocked=any((getattr(output, "nsfw_content_detected", None) or [False])[:1]),
            height=int(pixels.shape[0]),
            width=int(pixels.shape[1]),
            **seen,
            peak_memory_bytes=self._peak(),
            peak_device_memory_bytes=torch.cuda.max_memory_allocated() if self._counts_device_memory else None,
        )

    def save_recording(self, request: SaveRecording) -> Recorded:
        """Write the recorded calls, and forget them."""
        assert self._recorder is not None
        recorder, self._recorder = self._recorder, None
        return Recorded(macs=recorder.save(Path(request.file)))

    def replay(self, request: Replay) -> Replayed:
        """Give the recorded inputs to this pipeline's components."""
        from sdcompress.evaluation.worker.component_recording import replay

        figures, macs = replay(self._pipeline, Path(request.file))
        return Replayed(figures=figures, macs=macs)

    def _recording(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        if not wanted:
            return contextlib.nullcontext()
        from sdcompress.evaluation.worker.component_recording import Recorder

        if self._recorder is None:
            self._recorder = Recorder(self._pipeline)
        self._peak_is_its_own = False
        return self._recorder.one_picture()

    def _arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        if not self._rounds_products:
            return contextlib.nullcontext()
        from sdcompress.evaluation.worker.bfloat16 import RoundedProducts

        return RoundedProducts()

    def _peak(self) -> int | None:
        return peak_bytes() if self._peak_is_its_own else None

    def _arguments(self, options: dict[str, Any], warm_up: bool) -> dict[str, Any]:
        """Return what the pipeline is called with besides prompt, pictures and generator."""
        wanted = always_given(self._class) | {name: value for name, value in options.items() if value is not None}
        arguments = {name: value for name, value in wanted.items() if name in self._accepts}
        if "num_inference_steps" in self._accepts:
            default = self._accepts["num_inference_steps"].default
            strength = self._accepts["strength"].default if "strength" in self._accepts else None
            strength = arguments.get("strength", strength)
            steps = arguments.get("num_inference_steps", default)
            check_steps(self._class, steps, strength)
            if warm_up:
                arguments["num_inference_steps"] = min(max(WARM_UP_STEPS, fewest_steps(self._class, strength)), steps)
        return arguments


def _save(pixels: Any, file: str) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(file, format="PNG")


def _device_of_graphs(pipeline: Any) -> str:
    from sdcompress.backends.onnx.loading import runtime_of

    return runtime_of(pipeline).device


def _swap_component(pipeline: Any, name: str, folder: Path, threads: int | None, of_graphs: bool) -> None:
    """Put an ONNX or OpenVINO folder's component into a pipeline; `of_graphs`: whether that one has graphs too."""
    from sdcompress.backends.onnx.loading import open_component, runtime_of
    from sdcompress.backends.onnx.runtime import choose_runtime
    from sdcompress.sources.openvino_file import is_openvino_folder

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    runtime: Any
    if of_graphs:
        runtime = runtime_of(pipeline)
    elif is_openvino_folder(folder):
        from sdcompress.backends.openvino.runtime import choose_openvino_runtime

        runtime = choose_openvino_runtime(threads=threads)
    else:
        runtime = choose_runtime(str(pipeline.device.type), threads)
    library, class_name = index[name]
    pipeline.register_modules(**{name: open_component(folder, name, library, class_name, runtime)})


def _engine_of(folder: Path) -> str | None:
    """Return the module that computes the folder's graphs; None for a torch pipeline."""
    from sdcompress.sources.onnx_file import is_onnx_folder
    from sdcompress.sources.openvino_file import is_openvino_folder

    if is_openvino_folder(folder):
        return "openvino"
    return "onnxruntime" if is_onnx_folder(folder) else None


def _import_classes(folder: Path) -> str | None:
    """Import what the pipeline's classes need, so that memory and load time leave Python's imports out.

    Returns the module that computes the folder's graphs; None for a torch pipeline.
    """
    import diffusers
    import transformers

    engine = _engine_of(folder)
    if engine is not None:
        importlib.import_module("sdcompress.backends.onnx.denoisers")
        importlib.import_module(engine)
    libraries = {"diffusers": diffusers, "transformers": transformers}
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    getattr(diffusers, str(index.get("_class_name")), None)
    for value in index.values():
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)):
            continue
        library, name = value
        if library in libraries:
            getattr(libraries[library], name, None)
        elif library == "stable_diffusion":
            importlib.import_module("diffusers.pipelines.stable_diffusion.safety_checker")
    return engine


def _weights_bytes(pipeline: Any) -> dict[str, int]:
    """Return the bytes of each torch component's parameters and buffers. ONNX Runtime does not tell what it keeps."""
    import torch

    sizes = {}
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            tensors = {id(tensor): tensor for tensor in (*component.parameters(), *component.buffers())}
            if tensors:
                sizes[name] = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return sizes
