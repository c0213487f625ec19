"""tiny-sd, which is trained and so has quality: the GPU's pictures against the CPU's, and artifacts evaluated there.

Artifacts are made and evaluated as users do it: `sdcompress.compress` and `sdcompress.evaluate`, each pipeline in a
process of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import yaml

import sdcompress
from benchmarks.gpu.part import Part
from sdcompress.calibration.prompts import default_prompts
from sdcompress.evaluation.settings import EvaluationSettings
from sdcompress.planning.recipe import Recipe, dump_recipe, load_recipe, parse_recipe

MODEL = "tiny-sd"
PICTURES = 4
RECOVERED = "pruned-30-recovered"
# Recipe -> seconds that its artifact and its evaluation take, training apart; it is not begun with less time left.
RECIPES = {"int8": 30, "int4-gptq": 40, RECOVERED: 50}
MINUTES = 1.0  # of training, or what is left of the time
FEWEST_MINUTES = 0.2
SMALL_RECOVERY = {"steps": 2, "batch_size": 2, "prompts": ["a red apple on white"]}
# Of a report: what is compared and how it was measured, without the samples and the layers of the components.
KEPT = ("settings", "scorer", "change", "similarity", "verdicts", "environment", "noise_floor", "gates")


def run(part: Part) -> None:
    """Measure the pictures, then each recipe."""
    with part.attempt("pictures"):
        compare_pictures(part)
    reports: dict[str, Any] = {}
    left_out: list[str] = []
    part.save(reports=reports, left_out=left_out)
    for name in (RECOVERED,) if part.small else RECIPES:
        needed_s = RECIPES[name] + (60 * FEWEST_MINUTES if name == RECOVERED else 0)
        if part.left_s() < needed_s:
            left_out.append(name)
            part.save()
            continue
        with part.attempt(name):
            evaluate(part, name, reports)


def compare_pictures(part: Part) -> None:
    """Save the PSNR in dB of each picture on the device to the CPU's in float32, in each precision."""
    count, steps = (1, 2) if part.small else (PICTURES, None)
    on_cpu = draw("cpu", "float32", count, steps)
    pictures: dict[str, Any] = {}
    part.save(pictures=pictures)
    for dtype in ("float32",) if part.small else ("float32", "float16", "bfloat16"):
        with part.attempt(f"pictures in {dtype}"):
            torch.backends.cudnn.allow_tf32 = dtype != "float32"
            began = time.perf_counter()
            drawn = draw(part.device, dtype, count, steps)
            psnr = [psnr_db(one, other) for one, other in zip(drawn, on_cpu, strict=True)]
            pictures[dtype] = {"psnr_db": psnr, "seconds": time.perf_counter() - began}
            part.save()


def draw(device: str, dtype: str, count: int, steps: int | None) -> list[np.ndarray]:
    """Return pictures [height, width, 3] from 0 to 1; the same seeds give the same initial latents everywhere."""
    prompts = default_prompts(tiny_sd=True)
    pipeline = sdcompress.open_pipeline(MODEL, device=device, dtype=dtype)
    pictures = []
    for seed, prompt in enumerate(prompts.take(count)):
        drawn = pipeline(
            prompt,
            num_inference_steps=steps or prompts.num_inference_steps,
            guidance_scale=prompts.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="np",
        )
        pictures.append(drawn.images[0])
    return pictures


def evaluate(part: Part, name: str, reports: dict[str, Any]) -> None:
    """Save the report of the recipe's artifact."""
    began = time.perf_counter()
    folder = part.work / "artifacts" / name
    minutes = min(MINUTES, (part.left_s() - RECIPES[name]) / 60)
    recovery = SMALL_RECOVERY if part.small else {"minutes": minutes, "prompt_count": 32}
    recipe = with_recovery(load_recipe(name), recovery)
    artifact = sdcompress.compress(MODEL, recipe, folder, progress=None)
    assert artifact is not None
    settings = EvaluationSettings(
        device=part.device,
        prompt_count=2 if part.small else 12,
        num_inference_steps=2 if part.small else None,
        use_clip=not part.small,
        noise_floor=(),
        component_metrics=False,
    )
    made = time.perf_counter()
    report = sdcompress.evaluate(MODEL, folder, part.work / "reports" / name, settings=settings, progress=None)
    facts = artifact.manifest.components["unet"].recovery
    reports[name] = {
        "compress_s": made - began,
        "evaluate_s": time.perf_counter() - made,
        "recovery": facts and {key: facts[key] for key in ("steps", "seconds", "samples_per_step", "device")},
        **shortened_report(report.to_dict()),
    }
    part.save()


def psnr_db(picture: np.ndarray, reference: np.ndarray) -> float | None:
    """Return the peak signal-to-noise ratio of pictures from 0 to 1; None if they are identical."""
    error = float(np.square(picture.astype(np.float64) - reference.astype(np.float64)).mean())
    return -10 * math.log10(error) if error else None


def with_recovery(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe with these parameters in place of those of its step `recover`, if it has one."""
    document = yaml.safe_load(dump_recipe(recipe))
    for steps in document["components"].values():
        for step in steps:
            if "recover" in step:
                step["recover"] = dict(changes)
    return parse_recipe(yaml.safe_dump(document), "with another recovery")


def shortened_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a table needs of a report."""
    kept = {name: report[name] for name in KEPT if name in report}
    for side in ("original", "compressed"):
        kept[side] = {name: value for name, value in report[side].items() if name != "components"}
    return kept
