"""A UNet step with torch.compile: the original's and those of quantized UNets, against the original as it is.

Stable Diffusion 1.5's UNets are compiled whole, in one graph. Compiling XL's whole takes minutes; its transformer
blocks, which are alike and take most of the time, are compiled once each kind, as diffusers advises.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.part import ORIGINAL, Part
from benchmarks.gpu.racing import Rounds, peak_bytes_of, race, summary
from benchmarks.gpu.random_models import (
    compressed_models,
    random_module,
    random_source,
    step_inputs,
    stored_bytes,
)
from benchmarks.gpu.steps import SMALL_ROUNDS, describe, step
from benchmarks.torch_step import relative_error

CONTENDERS = (ORIGINAL, "int8", "int8-dynamic", "int4")
ROUNDS = Rounds(most=8, fewest=3, runs=5, seconds=6)
SHORTEST_S = 15  # no contender is begun with less time left
SMALL_CONTENDERS = ("int8",)


def run(part: Part, name: str) -> None:
    """Measure the compiled UNets of the catalog's pipeline `name`."""
    torch.set_grad_enabled(False)
    source = random_source(name, part.small)
    original = random_module(source.components["unet"], part.device)
    inputs = step_inputs(source, part.device)
    whole = name == "sd15"
    results: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    part.save(
        model=describe(name, inputs),
        compiled="the whole UNet, in one graph" if whole else "the transformer blocks of the UNet",
        baseline=ORIGINAL,
        contenders=results,
        left_out=left_out,
    )
    plain = partial(step, original, inputs)
    reference = plain()
    for contender in SMALL_CONTENDERS if part.small else CONTENDERS:
        if part.left_s() < SHORTEST_S:
            left_out.append(contender)
            part.save()
            continue
        with part.attempt(contender):
            unet = (
                random_module(source.components["unet"], part.device)  # the same values in a module of its own
                if contender == ORIGINAL
                else compressed_models(source, {"unet": original}, contender, part.device)["unet"]
            )
            began = time.perf_counter()
            compiled = partial(step, compile_unet(unet, whole, part.small), inputs)
            output = compiled()
            weights_bytes = stored_bytes(unet)
            results[contender] = {
                "compile_s": time.perf_counter() - began,
                "relative_error": relative_error(output, reference),
                "finite": bool(output.isfinite().all()),
                "unet_bytes": weights_bytes,
                "peak_bytes": peak_bytes_of(compiled, weights_bytes, part.device),
            }

            def save(seconds: dict[str, list[float]], result: dict[str, Any] = results[contender]) -> None:
                result["step"] = summary(seconds["compiled"], seconds["plain"])
                result["original_s"] = seconds["plain"]
                part.save()

            race({"plain": plain, "compiled": compiled}, part.device, SMALL_ROUNDS if part.small else ROUNDS, save)
            del unet, compiled


def compile_unet(unet: Any, whole: bool, small: bool) -> nn.Module:
    """Return the UNet compiled: the whole, or its repeated blocks. `small` compiles nothing after tracing."""
    backend = "eager" if small else "inductor"
    if whole:
        return torch.compile(unet, fullgraph=True, backend=backend)  # type: ignore[no-any-return]
    unet.compile_repeated_blocks(fullgraph=True, backend=backend)
    return unet  # type: ignore[no-any-return]
