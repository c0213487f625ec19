"""Drawing one picture with a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdcompress.errors import SourceError
from sdcompress.hub import with_weights
from sdcompress.opening import open_pipeline
from sdcompress.prompts import default_prompts, is_tiny_sd
from sdcompress.source import open_source

if TYPE_CHECKING:
    from PIL.Image import Image


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
) -> Image:
    """The picture `model` draws for the prompt; the same seed gives the same initial latents on every device.

    steps, guidance: None for the pipeline's own defaults (tiny-sd: those it was made for). device, dtype, threads,
    low_memory: as `open_pipeline` takes them; source_options: as `open_source` does. Raises SourceError when the model
    has no weights here.
    """
    import torch

    source = open_source(model, **(source_options or {}))
    if source.kind == "single-file":
        source = with_weights(source)
    if source.path is None:
        raise SourceError(f"{model}: has no weights here; compress it first, or give a folder")
    prompt_set = default_prompts(is_tiny_sd(source))
    settings: dict[str, Any] = {}
    if prompt_set.num_inference_steps is not None:
        settings["num_inference_steps"] = prompt_set.num_inference_steps
    if prompt_set.guidance_scale is not None:
        settings["guidance_scale"] = prompt_set.guidance_scale
    if steps is not None:
        settings["num_inference_steps"] = steps
    if guidance is not None:
        settings["guidance_scale"] = guidance
    pipeline = open_pipeline(
        source.path, device=device, dtype=dtype, threads=threads, low_memory=low_memory,
        variant=source.options.get("variant"),
    )  # fmt: skip
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipeline(prompt, generator=generator, **settings).images[0]  # type: ignore[no-any-return]
