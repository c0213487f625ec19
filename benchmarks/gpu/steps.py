"""Stable Diffusion 1.5 or XL in float16 with random weights: seconds of a UNet step and of a picture, and memory.

Every contender of random_models.py is in memory at once, and they take turns. A step is of batch 2, for guidance, in
the pipeline's own size; a picture is the whole pipeline, 20 steps, decoded. All is channels_last.
"""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.part import ORIGINAL, Part
from benchmarks.gpu.racing import Rounds, peak_bytes_of, race, summary
from benchmarks.gpu.random_models import (
    CONTENDERS,
    PRUNED,
    Models,
    compressed_models,
    random_models,
    random_pipeline,
    random_source,
    step_inputs,
    stored_bytes,
)
from benchmarks.torch_step import relative_error

WARM_UPS = 3
PICTURE_STEPS = 20
STEP_ROUNDS = Rounds(most=12, fewest=3, runs=5, seconds=25)
PICTURE_ROUNDS = Rounds(most=3, fewest=1, runs=1, seconds=20)
SMALL_ROUNDS = Rounds(most=1, fewest=1, runs=1, seconds=5)
SMALL_XL = ("int8", "int8-dynamic", PRUNED)  # with `small`, of all contenders for XL


def run(part: Part, name: str) -> None:
    """Measure the catalog's pipeline `name`."""
    torch.set_grad_enabled(False)
    source = random_source(name, part.small)
    models = {ORIGINAL: random_models(source, part.device)}
    inputs = step_inputs(source, part.device)
    results: dict[str, dict[str, Any]] = {}
    part.save(model=describe(name, inputs), baseline=ORIGINAL, contenders=results)
    reference = models[ORIGINAL]["unet"](**inputs).sample
    for contender in (ORIGINAL, *(SMALL_XL if part.small and name == "sdxl" else CONTENDERS)):
        with part.attempt(contender):
            if contender != ORIGINAL:
                models[contender] = compressed_models(source, models[ORIGINAL], contender, part.device)
            like = None if contender == PRUNED else reference  # the pruned one has weights of its own
            results[contender] = measured_once(models[contender]["unet"], inputs, like, part.device)
            part.save()
    ready = {contender: models[contender] for contender in results}
    steps = {contender: partial(step, each["unet"], inputs) for contender, each in ready.items()}

    def save(kind: str, seconds: dict[str, list[float]]) -> None:
        for contender, each in seconds.items():
            results[contender][kind] = summary(each, seconds[ORIGINAL])
        part.save()

    race(steps, part.device, SMALL_ROUNDS if part.small else STEP_ROUNDS, partial(save, "step"))
    del models, steps
    gc.collect()
    with part.attempt("pictures"):
        pipeline = random_pipeline(source, ready[ORIGINAL], part.work / name)
        count = 1 if part.small else PICTURE_STEPS
        pictures = {contender: partial(draw, pipeline, each, count) for contender, each in ready.items()}
        for contender, run_once in pictures.items():  # which is the warm-up too
            weights_bytes = sum(map(stored_bytes, ready[contender].values()))
            peak = peak_bytes_of(run_once, weights_bytes, part.device)
            results[contender] |= {"picture_weights_bytes": weights_bytes, "picture_peak_bytes": peak}
            part.save(picture_steps=count)
        race(pictures, part.device, SMALL_ROUNDS if part.small else PICTURE_ROUNDS, partial(save, "picture"))


def describe(name: str, inputs: dict[str, Any]) -> str:
    """Return what is measured, for the table."""
    shape = "x".join(map(str, inputs["sample"].shape))
    return f"{name}, random weights, float16, channels_last, latents {shape}; codes rounded to nearest"


def step(unet: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the UNet's prediction."""
    prediction: torch.Tensor = unet(**inputs).sample
    return prediction


def draw(pipeline: Any, models: Models, steps: int) -> Any:
    """Draw a picture with these components in the pipeline."""
    for component, module in models.items():
        setattr(pipeline, component, module)
    generator = torch.Generator("cpu").manual_seed(0)
    return pipeline("a lighthouse", num_inference_steps=steps, generator=generator, output_type="pt").images


def measured_once(
    unet: nn.Module, inputs: dict[str, Any], reference: torch.Tensor | None, device: str
) -> dict[str, Any]:
    """Return bytes, peak memory and error of a UNet's step; the runs for it warm it up."""
    for _ in range(WARM_UPS):
        output = step(unet, inputs)
    weights_bytes = stored_bytes(unet)
    return {
        "unet_bytes": weights_bytes,
        "peak_bytes": peak_bytes_of(partial(step, unet, inputs), weights_bytes, device),
        "finite": bool(output.isfinite().all()),
        "relative_error": None if reference is None else relative_error(output, reference),
    }
