"""The child process that holds one pipeline, or the judge: JSON requests on stdin, one JSON answer a line on stdout.

Run as `python -m sdcompress.worker`. A fresh process per pipeline makes its peak memory its own. Whatever libraries
print goes to stderr, which the parent writes to a log.
"""

from __future__ import annotations

import faulthandler
import functools
import hashlib
import inspect
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdcompress.errors import SdcompressError
from sdcompress.judge import Judge

WARM_UP_STEPS = 2


class ComponentClock:
    """Seconds each component computed since the last `take`."""

    def __init__(self, device: str):
        self._device = device
        self._spans: list[tuple[str, Any, Any]] = []

    def watch(self, name: str, owner: Any, method: str) -> None:
        """Time every call of owner.method from now on."""
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._mark()
            result = inner(*args, **kwargs)
            self._spans.append((name, start, self._mark()))
            return result

        setattr(owner, method, timed)

    def take(self) -> dict[str, float]:
        """Component -> seconds over all of its calls; starts again from zero."""
        if self._device == "cuda":
            synchronize(self._device)
        seconds: dict[str, float] = {}
        for name, start, end in self._spans:
            took = start.elapsed_time(end) / 1000 if self._device == "cuda" else end - start
            seconds[name] = seconds.get(name, 0.0) + took
        self._spans.clear()
        return seconds

    def _mark(self) -> Any:
        # Events on CUDA's own queue time a component without making the CPU wait for it.
        if self._device == "cuda":
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        synchronize(self._device)
        return time.perf_counter()


class Worker:
    """One pipeline, opened once, drawing a picture for each request."""

    def open(self, path: str, device: str, dtype: str, threads: int | None, low_memory: bool = False) -> dict[str, Any]:
        """Opens the pipeline; answers with its load time, defaults, and resident memory and weights in bytes.

        `resident_weights_bytes` holds torch components alone: what ONNX Runtime keeps of a weight it does not tell.
        """
        import torch

        from sdcompress.onnx_file import is_onnx_folder
        from sdcompress.opening import open_pipeline

        onnx = is_onnx_folder(Path(path))
        _import_classes(Path(path), onnx)
        after_imports = resident_bytes()
        start = time.perf_counter()
        self._pipeline = open_pipeline(path, device=device, dtype=dtype, threads=threads, low_memory=low_memory)
        self._device = torch.device(self._pipeline.device).type
        # Tensors may lie elsewhere than ONNX Runtime computes, and torch does not count the memory it takes there.
        self._ran_on = _device_of_graphs(self._pipeline) if onnx else self._device
        self._counts_device_memory = self._device == "cuda" and not onnx
        synchronize(self._device)
        load_s = time.perf_counter() - start
        after_open = resident_bytes()

        self._pipeline.set_progress_bar_config(disable=True)
        self._accepts = inspect.signature(self._pipeline.__call__).parameters
        self._clock = ComponentClock(self._device)
        for name, component in self._pipeline.components.items():
            method = "decode" if name.startswith("vae") else "forward"
            if callable(getattr(component, method, None)):
                self._clock.watch(name, component, method)
        self._latents_sha256: str | None = None
        _keep_latents(self._pipeline, self._remember_latents)
        return {
            "load_s": load_s,
            "resident_after_imports_bytes": after_imports,
            "resident_after_open_bytes": after_open,
            "peak_memory_bytes": peak_bytes(),
            "resident_weights_bytes": _weights_bytes(self._pipeline),
            "pipeline_class": type(self._pipeline).__name__,
            "device": self._ran_on,
            "device_name": torch.cuda.get_device_name() if self._device == "cuda" else None,
            "dtype": str(getattr(self._pipeline, "dtype", "")).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "defaults": {
                name: self._accepts[name].default
                for name in ("num_inference_steps", "guidance_scale")
                if name in self._accepts
            },
        }

    def draw(
        self, prompt: str, seed: int, options: dict[str, Any], picture: str | None, warm_up: bool = False
    ) -> dict[str, Any]:
        """Draws one picture and saves it as PNG; answers with its seconds, flags and peak memory in bytes."""
        import torch

        arguments = {name: value for name, value in options.items() if value is not None and name in self._accepts}
        steps = arguments.get("num_inference_steps")
        if warm_up and "num_inference_steps" in self._accepts:
            arguments["num_inference_steps"] = min(WARM_UP_STEPS, steps or WARM_UP_STEPS)
        self._latents_sha256 = None
        self._clock.take()
        synchronize(self._device)
        start = time.perf_counter()
        with torch.inference_mode():
            output = self._pipeline(
                prompt=prompt, generator=torch.Generator("cpu").manual_seed(seed), output_type="np", **arguments
            )
        synchronize(self._device)
        latency_s = time.perf_counter() - start
        seen = _save(output.images[0], picture)
        return {
            "latency_s": latency_s,
            "component_latency_s": self._clock.take(),
            "latents_sha256": self._latents_sha256,
            "blocked": any(getattr(output, "nsfw_content_detected", None) or ()),
            **seen,
            "peak_memory_bytes": peak_bytes(),
            "peak_device_memory_bytes": torch.cuda.max_memory_allocated() if self._counts_device_memory else None,
        }

    def _remember_latents(self, sha256: str) -> None:
        self._latents_sha256 = sha256


def _device_of_graphs(pipeline: Any) -> str:
    from sdcompress.backends.onnx.loading import runtime_of

    return runtime_of(pipeline).device


def synchronize(device: str) -> None:
    """Returns once the device has done all that was asked of it."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def resident_bytes() -> int:
    """Bytes of memory this process holds now."""
    import psutil

    return psutil.Process().memory_info().rss


def peak_bytes() -> int | None:
    """The most bytes of memory this process ever held; None where the system does not say."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux's ru_maxrss survives exec, so a child would inherit its parent's peak; VmHWM starts anew.
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _import_classes(path: Path, onnx: bool) -> None:
    """Imports what the pipeline's classes need, so that memory and load time do not count Python's imports."""
    import importlib

    import diffusers
    import transformers

    if onnx:
        importlib.import_module("sdcompress.backends.onnx.components")
        importlib.import_module("onnxruntime")
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


def _keep_latents(pipeline: Any, remember: Callable[[str], None]) -> None:
    """Makes the pipeline draw its initial latents in float32 whatever its dtype, and tells their SHA-256.

    The same seed gives other numbers in another dtype, and two pipelines compared must start from the same noise.
    """
    inner = getattr(pipeline, "prepare_latents", None)
    if inner is None:
        return
    signature = inspect.signature(inner)

    @functools.wraps(inner)
    def prepare(*args: Any, **kwargs: Any) -> Any:
        import torch

        bound = signature.bind(*args, **kwargs)
        dtype = bound.arguments.get("dtype")
        if dtype is not None:
            bound.arguments["dtype"] = torch.float32
        result = inner(*bound.args, **bound.kwargs)
        latents = result[0] if isinstance(result, tuple) else result
        remember(hashlib.sha256(latents.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest())
        if dtype is None:
            return result
        return (latents.to(dtype), *result[1:]) if isinstance(result, tuple) else latents.to(dtype)

    pipeline.prepare_latents = prepare


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
    import numpy as np
    from PIL import Image

    finite = bool(np.isfinite(image).all())
    pixels = (np.nan_to_num(image, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)
    if picture is not None:
        Image.fromarray(pixels).save(picture, format="PNG")
    return {
        "height": int(pixels.shape[0]),
        "width": int(pixels.shape[1]),
        "not_finite": not finite,
        "flat": bool(pixels.min() == pixels.max()),
    }


def serve(requests: Any, answers: Any) -> None:
    """Answers each line of `requests` on `answers` until they end; an unforeseen error's traceback is logged."""
    worker, judge = Worker(), Judge()
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "open": worker.open,
        "draw": worker.draw,
        "open_judge": judge.open,
        "score": judge.score,
    }
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
