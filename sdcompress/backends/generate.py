"""Drawing one picture with a pipeline, and explaining a black one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.backends.black_pictures import DecoderGuard, to_pixels, why_black
from sdcompress.backends.open_pipeline import open_pipeline
from sdcompress.calibration.input_pictures import (
    always_given,
    check_steps,
    describe_pictures,
    find_files,
    make_pictures,
    request_pictures,
)
from sdcompress.calibration.prompts import default_prompts, is_tiny_sd
from sdcompress.errors import SourceError, UserError
from sdcompress.sources.opening import open_source, with_weights

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def generate(
    model: str,
    prompt: str,
    *,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    low_memory: bool = False,
    source_options: Mapping[str, Any] | None = None,
    strength: float | None = None,
    image: Path | None = None,
    mask: Path | None = None,
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Picture:
    """Return the picture that `model` draws for the prompt.

    The same seed gives the same initial latents on every device.

    Args:
        model: tiny-sd, a diffusers folder, a checkpoint or an artifact.
        prompt: what to draw.
        seed: of the initial latents, and of built-in pictures.
        steps: denoising steps; None for the pipeline's default (tiny-sd: what it was made for).
        guidance: guidance scale; None as for `steps`.
        device: as `open_pipeline` takes it, like `dtype`, `threads` and `low_memory`.
        source_options: what `open_source` takes besides.
        strength: how much of a picture is drawn over, for pipelines that draw over one.
        image: a picture to draw from, for pipelines that need one; None for a built-in one.
        mask: white where the picture is drawn anew.
        tell: called with what is built in, and with what is wrong with a black picture.

    Raises:
        SourceError: the model has no weights here.
        UserError: the pipeline does not take that picture or strength.
    """
    import inspect

    import torch
    from PIL import Image

    source = open_source(model, **(source_options or {}))
    if source.kind == "single-file":
        source = with_weights(source)
    if source.path is None:
        raise SourceError(f"{model}: has no weights here; compress it first, or give a folder")
    prompt_set = default_prompts(is_tiny_sd(source))
    files = find_files(image, mask, source.pipeline_class)
    chosen = {
        "num_inference_steps": prompt_set.num_inference_steps if steps is None else steps,
        "guidance_scale": prompt_set.guidance_scale if guidance is None else guidance,
        "strength": strength,
    }
    settings = always_given(source.pipeline_class)
    settings |= {name: value for name, value in chosen.items() if value is not None}
    pipeline = open_pipeline(
        source.path, device=device, dtype=dtype, threads=threads, low_memory=low_memory,
        variant=source.options.get("variant"),
    )  # fmt: skip
    takes = inspect.signature(pipeline.__call__).parameters
    if strength is not None and "strength" not in takes:
        raise UserError(f"--strength {strength:g}: a {source.pipeline_class} draws over no picture; leave it out")
    used = {name: each.default for name, each in takes.items()} | settings
    check_steps(source.pipeline_class, used["num_inference_steps"], used.get("strength"))
    for name, given in describe_pictures(files, source.pipeline_class).items():
        if isinstance(given, str):
            tell(f"{name}: none was given, so it is the {given}")
    pictures = make_pictures(pipeline, request_pictures(files, source.pipeline_class, 0, seed), {})
    guard = DecoderGuard(pipeline)
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = pipeline(prompt=prompt, generator=generator, output_type="np", **pictures, **settings)
    pixels, seen = to_pixels(drawn.images[0])
    if guard.upcast is not None:
        tell(f"warning: the VAE overflowed float16; the picture was decoded in {guard.upcast} instead")
    blocked = bool((getattr(drawn, "nsfw_content_detected", None) or [False])[0])
    wrong = why_black(seen, blocked, guard)
    if wrong is not None:
        tell(f"warning: {wrong}")
    return Image.fromarray(pixels)
