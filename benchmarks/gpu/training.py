"""Training speed of `recover`: samples a second and peak memory, on tiny-sd and on a UNet of the size of SD 1.5's.

A pruned UNet is trained by `sdcompress.compress`, for a few steps; the first ones do not count. The larger model has
random weights, so what it learns means nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

import sdcompress
from benchmarks.gpu.part import Part
from benchmarks.gpu.random_models import random_models, random_pipeline, random_source
from sdcompress.planning.recipe import parse_recipe
from sdcompress.progress import ProgressEvent

RECIPE = """
schema_version: 1
description: One layer in each block of the UNet, trained for a few steps.
components:
  unet:
    - prune: {{drop_mid_block: true, layers_per_block: 1}}
    - recover:
        prompts: [a red apple, two cats]
        checkpoint_minutes: 60
        steps: {steps}
        batch_size: {batch}
        dtype: {dtype}
    - cast: {{dtype: float16}}
"""
UNCOUNTED = 3  # steps at the start
SHORTEST_S = 12  # no run is begun with less time left
# Model -> runs: precision, samples in a batch, steps.
RUNS = {"tiny-sd": [("float32", 16, 40), ("bfloat16", 64, 40)], "sd15": [("bfloat16", 8, 15), ("float32", 8, 10)]}
SMALL_RUNS = {"sd15": [("bfloat16", 2, 4)]}


def run(part: Part) -> None:
    """Measure every run."""
    results: list[dict[str, Any]] = []
    left_out: list[str] = []
    part.save(runs=results, left_out=left_out)
    for model, runs in (SMALL_RUNS if part.small else RUNS).items():
        with part.attempt(model):
            opened = model if model == "tiny-sd" else str(random_folder(part, model))
            for dtype, batch, steps in runs:
                what = f"{model} in {dtype}, batches of {batch}"
                if part.left_s() < SHORTEST_S:
                    left_out.append(what)
                    part.save()
                    continue
                with part.attempt(what):
                    results.append({"model": model, "dtype": dtype, "batch_size": batch, "steps": steps})
                    results[-1] |= train(part, opened, dtype, batch, steps)
                    part.save()


def random_folder(part: Part, model: str) -> Path:
    """Return a folder with the catalog's pipeline and random weights, made on the device."""
    folder = part.work / f"{model}-random"
    source = random_source(model, part.small)
    random_pipeline(source, random_models(source, part.device), part.work / model).save_pretrained(folder)
    if part.device == "cuda":
        torch.cuda.empty_cache()
    return folder


def train(part: Part, model: str, dtype: str, batch: int, steps: int) -> dict[str, Any]:
    """Return seconds of each step, samples a second and peak memory in bytes of one run."""
    times: list[float] = []

    def listen(event: ProgressEvent) -> None:
        if event.activity == "training":
            times.append(time.perf_counter())

    on_cuda = part.device == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    recipe = parse_recipe(RECIPE.format(steps=steps, batch=batch, dtype=dtype), "training")
    artifact = sdcompress.compress(model, recipe, part.work / "trained", force=True, progress=listen)
    assert artifact is not None
    recovery = artifact.manifest.components["unet"].recovery
    assert recovery is not None
    step_s = [after - before for before, after in zip(times[UNCOUNTED - 1 :], times[UNCOUNTED:], strict=False)]
    return {
        "device": recovery["device"],
        "trained_parameters": recovery["trained_parameters"],
        "step_s": step_s,
        "samples_per_s": batch / median(step_s),
        "peak_bytes": torch.cuda.max_memory_allocated() if on_cuda else None,
    }
