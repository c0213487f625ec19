"""The process that holds one contender's pipeline: draws a picture a turn, tells seconds whole and by component."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.inputs import without_checker
from benchmarks.contenders.job import Job
from benchmarks.contenders.onnx_runtime import onnx_bytes
from benchmarks.contenders.serving import serve
from sdcompress.evaluation.worker.pipeline import WARM_UP_STEPS
from sdcompress.evaluation.worker.process_meters import ComponentClock, peak_bytes


class Worker:
    """One pipeline, opened once, drawing the same picture whenever asked."""

    def load(self, job: str, family: str, options: dict[str, Any], drawing: dict[str, Any]) -> dict[str, Any]:
        """Opens it; answers with seconds without Python's imports, bytes of its weights and the process id."""
        import torch

        task = Job.from_json(job)
        torch.set_num_threads(task.threads)
        torch.set_grad_enabled(False)
        opener = {"torch": open_torch, "onnxruntime": open_optimum, "sdcompress": open_ours}[family]
        import_libraries(family)
        start = time.perf_counter()
        self._pipeline, size_bytes = opener(task, **options)
        load_s = time.perf_counter() - start
        self._pipeline.set_progress_bar_config(disable=True)
        self._drawing = drawing
        self._clock = ComponentClock("cpu")
        for name in ("text_encoder", "text_encoder_2", "unet", "transformer", "vae"):
            component = getattr(self._pipeline, name, None)
            if component is not None:
                self._clock.watch(name, component, "decode" if name == "vae" else "forward")
        return {
            "load_s": load_s,
            "size_bytes": size_bytes,
            "details": {"pipeline_class": type(self._pipeline).__name__},
            "pid": os.getpid(),
        }

    def warm_up(self) -> dict[str, Any]:
        """Draws with two steps; answers with the seconds."""
        start = time.perf_counter()
        self._draw(num_inference_steps=WARM_UP_STEPS)
        return {"seconds": [time.perf_counter() - start]}

    def step(self) -> dict[str, Any]:
        """Draws the picture; answers with its seconds, those of each component, and the peak memory in bytes."""
        self._clock.take()
        start = time.perf_counter()
        self._draw()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "component_s": self._clock.take(), "peak_bytes": peak_bytes()}

    def output(self, to: str) -> dict[str, Any]:
        """Writes the picture to `to` (.npy, float32 in 0..1)."""
        Path(to).parent.mkdir(parents=True, exist_ok=True)
        np.save(to, self._draw())
        return {"peak_bytes": peak_bytes()}

    def _draw(self, **changed: Any) -> np.ndarray:
        import torch

        generator = torch.Generator("cpu").manual_seed(self._drawing["seed"])
        options = {**self._drawing["options"], **changed}
        # Drawn in float32 for all: the same seed gives other numbers in bfloat16.
        latents = torch.randn(self._drawing["latents"], generator=generator, dtype=torch.float32)
        dtype = getattr(self._pipeline.unet, "dtype", torch.float32)
        answer = self._pipeline(self._drawing["prompt"], latents=latents.to(dtype), output_type="np", **options)
        return np.asarray(answer.images[0], dtype=np.float32)


def import_libraries(family: str) -> None:
    """Imports what opening needs, which is no part of loading a pipeline."""
    for name in ("stable_diffusion.pipeline_stable_diffusion", "stable_diffusion_xl.pipeline_stable_diffusion_xl"):
        importlib.import_module(f"diffusers.pipelines.{name}")
    importlib.import_module("transformers.models.clip.modeling_clip")

    if family == "onnxruntime":
        importlib.import_module("optimum.onnxruntime")
    if family == "sdcompress":
        importlib.import_module("onnxruntime")
        importlib.import_module("sdcompress.backends.open_pipeline")


def open_torch(job: Job, dtype: str) -> tuple[Any, int]:
    """The pipeline in that precision, convolutions in channels-last order in bfloat16; the bytes of its tensors."""
    import torch
    from diffusers import DiffusionPipeline

    precision = getattr(torch, dtype)
    pipeline = DiffusionPipeline.from_pretrained(
        job.model, torch_dtype=precision, local_files_only=True, **without_checker(job.model)
    )
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    if precision is torch.bfloat16:
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
    return pipeline, sum(t.numel() * t.element_size() for part in modules for t in part.parameters())


def open_optimum(job: Job, recipe: None) -> tuple[Any, int]:
    """optimum's pipeline over its own export; the bytes of the ONNX files."""
    import onnxruntime
    from optimum.onnxruntime import ORTDiffusionPipeline

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    pipeline = ORTDiffusionPipeline.from_pretrained(job.folder(), session_options=options)
    return pipeline, folder_bytes(job.folder())


def open_ours(job: Job, recipe: str, calibrated: bool = False, low_memory: bool = False) -> tuple[Any, int]:
    """The artifact of the recipe as sdcompress opens it, without safety checker as all here; the bytes of its files."""
    import sdcompress

    pipeline = sdcompress.open_pipeline(job.folder(recipe), device="cpu", threads=job.threads, low_memory=low_memory)
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.register_modules(safety_checker=None)
    return pipeline, folder_bytes(job.folder(recipe))


def folder_bytes(folder: Path) -> int:
    """Bytes of all ONNX files of a pipeline but the safety checker's."""
    return sum(onnx_bytes(part) for part in folder.iterdir() if part.is_dir() and part.name != "safety_checker")


if __name__ == "__main__":
    worker = Worker()
    serve({"load": worker.load, "warm_up": worker.warm_up, "step": worker.step, "output": worker.output})
