"""Drawing with a diffusers pipeline what `sdcompress evaluate` draws, in any Python that has diffusers.

The same prompts from the same latents, several pictures at once: nothing is timed here, and layers that dequantize on
the fly then do it once for all. (LLM.int8 looks for outlying columns in all of them together.) sdcompress's own worker
cannot be used: the peers live in an environment without it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

AT_ONCE = 16


def draw(pipeline: Any, drawings: Sequence[Mapping[str, Any]], options: Mapping[str, Any], folder: Path) -> list[str]:
    """The SHA-256 of each drawing's initial latents; its picture lies in `folder` as PNG, named by its index.

    drawings: index, prompt and seed of each. options: of the pipeline's call, such as `num_inference_steps`.
    """
    import numpy as np
    import torch
    from PIL import Image

    pipeline.set_progress_bar_config(disable=True)
    pipeline.safety_checker = None  # its black squares would say nothing about quality
    hashes: list[str] = []
    _watch_latents(pipeline, hashes.append)
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(drawings), AT_ONCE):
        some = drawings[start : start + AT_ONCE]
        with torch.no_grad():  # inference mode, whose results are the same, is refused by quanto's packed tensors
            output = pipeline(
                prompt=[drawing["prompt"] for drawing in some],
                generator=[torch.Generator("cpu").manual_seed(drawing["seed"]) for drawing in some],
                output_type="np",
                **options,
            )
        for drawing, image in zip(some, output.images, strict=True):  # [height, width, 3] in 0..1
            if not np.isfinite(image).all():
                raise ValueError(f"the picture of {drawing['prompt']!r} holds NaN or infinity")
            pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / picture_name(drawing["index"]), format="PNG")
    return hashes


def picture_name(index: int) -> str:
    return f"{index:04d}.png"


def _watch_latents(pipeline: Any, remember: Callable[[str], None]) -> None:
    """Makes the pipeline draw its initial latents in float32 whatever its dtype, and tells their SHA-256."""
    inner = pipeline.prepare_latents
    signature = inspect.signature(inner)

    @functools.wraps(inner)
    def prepare(*args: Any, **kwargs: Any) -> Any:
        import torch

        bound = signature.bind(*args, **kwargs)
        dtype = bound.arguments["dtype"]
        bound.arguments["dtype"] = torch.float32
        latents = inner(*bound.args, **bound.kwargs)
        for each in latents:
            remember(hashlib.sha256(each.contiguous().numpy().tobytes()).hexdigest())
        return latents.to(dtype)

    pipeline.prepare_latents = prepare
