"""The child process that holds one pipeline, or the judge: JSON requests on stdin, one JSON answer a line on stdout.

Run as `python -m sdcompress.evaluation.worker.loop`. A fresh process per pipeline makes its peak memory its own.
What libraries print goes to stderr, which the parent writes to a log.
"""

from __future__ import annotations

import faulthandler
import inspect
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdcompress.backends.black_pictures import DecoderGuard, to_pixels
from sdcompress.calibration.input_pictures import always_given, check_steps, fewest_steps, make_pictures
from sdcompress.errors import SdcompressError
from sdcompress.evaluation.worker.energy import EnergyMeter
from sdcompress.evaluation.worker.initial_latents import same_noise
from sdcompress.evaluation.worker.judge import Judge
from sdcompress.evaluation.worker.process_meters import ComponentClock, peak_bytes, resident_bytes, synchronize

WARM_UP_STEPS = 2


class Worker:
    """One pipeline, opened once, drawing a picture for each request."""

    def open(
        self,
        path: str,
        device: str,
        dtype: str,
        threads: int | None,
        low_memory: bool = False,
        swap: str | None = None,
        swap_from: str | None = None,
        variant: str | None = None,
    ) -> dict[str, Any]:
        """Opens the pipeline; answers with its load time, defaults, and resident memory and weights in bytes.

        `resident_weights_bytes` holds torch components alone: what ONNX Runtime keeps of a weight it does not tell.
        variant: of the weight files of a torch pipeline. swap, swap_from: a component to replace by that of an ONNX
        folder.
        """
        import torch

        from sdcompress.backends.open_pipeline import open_pipeline

        engine = _engine_of(Path(path))
        onnx = engine is not None
        _import_classes(Path(path), engine)
        after_imports = resident_bytes()
        start = time.perf_counter()
        self._pipeline = open_pipeline(
            path, device=device, dtype=dtype, threads=threads, low_memory=low_memory, variant=variant
        )
        if swap is not None and swap_from is not None:
            _swap_component(self._pipeline, swap, Path(swap_from), threads, onnx)
        self._device = torch.device(self._pipeline.device).type
        # Tensors may lie elsewhere than ONNX Runtime computes, and torch does not count the memory it takes there.
        self._ran_on = _device_of_graphs(self._pipeline) if onnx else self._device
        self._counts_device_memory = self._device == "cuda" and not onnx
        synchronize(self._device)
        load_s = time.perf_counter() - start
        after_open = resident_bytes()

        self._pipeline.set_progress_bar_config(disable=True)
        self._accepts = inspect.signature(self._pipeline.__call__).parameters
        self._class = type(self._pipeline).__name__
        self._guard = DecoderGuard(self._pipeline)
        self._clock = ComponentClock(self._device)
        for name, component in self._pipeline.components.items():
            for method in ("decode", "encode") if name.startswith("vae") else ("forward",):
                if callable(getattr(component, method, None)):
                    self._clock.watch(name, component, method)
        self._recorder: Any = None
        self._energy = EnergyMeter(self._ran_on)
        return {
            "load_s": load_s,
            "resident_after_imports_bytes": after_imports,
            "resident_after_open_bytes": after_open,
            "peak_memory_bytes": peak_bytes(),
            "resident_weights_bytes": _weights_bytes(self._pipeline),
            "pipeline_class": self._class,
            "device": self._ran_on,
            "device_name": torch.cuda.get_device_name() if self._device == "cuda" else None,
            "dtype": str(getattr(self._pipeline, "dtype", "")).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "energy_source": self._energy.source,
            "defaults": {
                name: self._accepts[name].default
                for name in ("num_inference_steps", "guidance_scale", "strength")
                if name in self._accepts
            },
        }

    def draw(
        self,
        prompt: str,
        seed: int,
        options: dict[str, Any],
        picture: str | None,
        warm_up: bool = False,
        inputs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Draws one picture and saves it as PNG; answers with its seconds, flags, joules and peak memory in bytes.

        inputs: what to make the pictures of that it draws from, as `request_pictures` has it (None: the seed).
        """
        return self._draw([prompt], [seed], options, picture, [inputs], warm_up)

    def draw_batch(
        self,
        prompts: list[str],
        seeds: list[int],
        options: dict[str, Any],
        picture: str | None,
        inputs: list[dict[str, Any] | None] | None = None,
    ) -> dict[str, Any]:
        """Draws several pictures at once and saves the first; answers as `draw` does."""
        return self._draw(prompts, seeds, options, picture, inputs or [None] * len(prompts))

    def record(
        self, prompt: str, seed: int, options: dict[str, Any], inputs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Draws one picture while all that its components get and give is recorded."""
        from sdcompress.evaluation.worker.component_probe import Recorder

        if self._recorder is None:
            self._recorder = Recorder(self._pipeline)
        self._recorder.begin_picture()
        self._draw([prompt], [seed], options, None, [inputs])
        return {}

    def save_recording(self, file: str) -> dict[str, Any]:
        """Writes what was recorded; answers with multiply-accumulates per picture."""
        assert self._recorder is not None
        return self._recorder.save(Path(file))

    def replay(self, file: str) -> dict[str, Any]:
        """Gives recorded inputs to this pipeline's components; answers with how far what comes out is off."""
        from sdcompress.evaluation.worker.component_probe import replay

        return replay(self._pipeline, Path(file))

    def _draw(
        self,
        prompts: list[str],
        seeds: list[int],
        options: dict[str, Any],
        picture: str | None,
        inputs: list[dict[str, Any] | None],
        warm_up: bool = False,
    ) -> dict[str, Any]:
        import torch

        arguments = self._arguments(options, warm_up)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        one = len(prompts) == 1
        pictures = [
            make_pictures(self._pipeline, request or {"seed": seed}, options)
            for request, seed in zip(inputs, seeds, strict=True)
        ]
        arguments |= {name: each if one else [every[name] for every in pictures] for name, each in pictures[0].items()}
        self._clock.take()
        synchronize(self._device)
        energy = self._energy.begin()
        start = time.perf_counter()
        # Recording keeps tensors for later, which inference mode would forbid to use elsewhere.
        without_gradients = torch.no_grad() if self._recorder else torch.inference_mode()
        with without_gradients, same_noise(self._pipeline) as noise:
            output = self._pipeline(
                prompt=prompts[0] if one else prompts,
                generator=generators[0] if one else generators,
                output_type="np",
                **arguments,
            )
        synchronize(self._device)
        latency_s = time.perf_counter() - start
        seen = _save(output.images[0], picture)
        return {
            "latency_s": latency_s,
            "energy_j": self._energy.end(energy),
            "component_latency_s": self._clock.take(),
            "latents_sha256": noise.sha256,
            "vae_upcast": self._guard.upcast,
            "blocked": any((getattr(output, "nsfw_content_detected", None) or [False])[:1]),
            **seen,
            "peak_memory_bytes": peak_bytes(),
            "peak_device_memory_bytes": torch.cuda.max_memory_allocated() if self._counts_device_memory else None,
        }

    def _arguments(self, options: dict[str, Any], warm_up: bool) -> dict[str, Any]:
        """What the pipeline is called with besides prompt, pictures and generator."""
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


def _device_of_graphs(pipeline: Any) -> str:
    from sdcompress.backends.onnx.loading import runtime_of

    return runtime_of(pipeline).device


def _swap_component(pipeline: Any, name: str, folder: Path, threads: int | None, graphs: bool) -> None:
    """Puts an ONNX or OpenVINO folder's component into a pipeline; `graphs`: whether that one is of graphs too."""
    from sdcompress.backends.onnx.loading import open_component, runtime_of
    from sdcompress.backends.onnx.runtime import choose_runtime
    from sdcompress.sources.openvino_file import is_openvino_folder

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    runtime: Any
    if graphs:
        runtime = runtime_of(pipeline)
    elif is_openvino_folder(folder):
        from sdcompress.backends.openvino.runtime import choose_openvino_runtime

        runtime = choose_openvino_runtime(threads=threads)
    else:
        runtime = choose_runtime(str(pipeline.device.type), threads)
    library, class_name = index[name]
    pipeline.register_modules(**{name: open_component(folder, name, library, class_name, runtime)})


def _engine_of(folder: Path) -> str | None:
    """The module that computes the folder's graphs; None for a torch pipeline."""
    from sdcompress.sources.onnx_file import is_onnx_folder
    from sdcompress.sources.openvino_file import is_openvino_folder

    if is_openvino_folder(folder):
        return "openvino"
    return "onnxruntime" if is_onnx_folder(folder) else None


def _import_classes(path: Path, engine: str | None) -> None:
    """Imports what the pipeline's classes need, so that memory and load time do not count Python's imports."""
    import importlib

    import diffusers
    import transformers

    if engine is not None:
        importlib.import_module("sdcompress.backends.onnx.denoisers")
        importlib.import_module(engine)
    libraries = {"diffusers": diffusers, "transformers": transformers}
    index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
    getattr(diffusers, str(index.get("_class_name")), None)
    for value in index.values():
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)):
            continue
        library, name = value
        if library in libraries:
            getattr(libraries[library], name, None)
        elif library == "stable_diffusion":
            importlib.import_module("diffusers.pipelines.stable_diffusion.safety_checker")


def _weights_bytes(pipeline: Any) -> dict[str, int]:
    """Component -> bytes its parameters and buffers take in memory; what runs in ONNX Runtime has none that we see."""
    import torch

    sizes = {}
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            tensors = {id(tensor): tensor for tensor in (*component.parameters(), *component.buffers())}
            if tensors:
                sizes[name] = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return sizes


def _save(image: Any, picture: str | None) -> dict[str, Any]:
    """Saves a float picture in 0..1 as PNG; tells its size and whether it is flat or holds NaN or infinity."""
    from PIL import Image

    pixels, seen = to_pixels(image)
    if picture is not None:
        Image.fromarray(pixels).save(picture, format="PNG")
    return {
        "height": int(pixels.shape[0]),
        "width": int(pixels.shape[1]),
        **seen,
    }


def list_actions() -> dict[str, Callable[..., dict[str, Any]]]:
    """Name of a request -> what answers it, of one worker and one judge."""
    worker, judge = Worker(), Judge()
    return {
        "open": worker.open,
        "draw": worker.draw,
        "draw_batch": worker.draw_batch,
        "record": worker.record,
        "save_recording": worker.save_recording,
        "replay": worker.replay,
        "open_judge": judge.open,
        "score": judge.score,
        "score_sets": judge.score_sets,
    }


def serve(requests: Any, answers: Any) -> None:
    """Answers each line of `requests` on `answers` until they end; an unforeseen error's traceback is logged."""
    actions = list_actions()
    for line in requests:
        request = json.loads(line)
        try:
            answer = actions[request.pop("do")](**request)
        except SdcompressError as error:
            answer = {"problem": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, allow_nan=False), file=answers, flush=True)


def main() -> None:
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # from here on a library's print lands in the log, not among the answers
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
