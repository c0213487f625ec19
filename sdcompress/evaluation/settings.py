"""What an evaluation is asked for: prompts, sampler, devices, and what is measured besides the pictures themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sdcompress.calibration.prompts import PromptSet
from sdcompress.errors import EvaluationError

NOISE_SOURCES = ("seed", "bfloat16", "batch")
NoiseSource = Literal["seed", "bfloat16", "batch"]


class EvaluationSettings(BaseModel):
    """How to evaluate. None means: what the pipeline or its prompt set says."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    prompts: PromptSet | None = None
    prompt_count: int | None = Field(None, ge=1)
    seeds_per_prompt: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0)
    strength: float | None = Field(None, gt=0, le=1)
    image: Path | None = None  # a file or a folder of pictures to draw from, where the pipeline wants some
    mask: Path | None = None
    height: int | None = Field(None, ge=8)
    width: int | None = Field(None, ge=8)
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    threads: int | None = Field(None, ge=1)
    low_memory: bool = False
    latency_repeats: int = Field(1, ge=1)
    clip: str | None = None
    use_clip: bool = True
    # Each source draws `noise_floor_count` pictures more with the original.
    noise_floor: tuple[NoiseSource, ...] = ("seed", "bfloat16")
    noise_floor_count: int = Field(8, ge=2)
    component_metrics: bool = True
    component_metrics_count: int = Field(4, ge=1)
    attribute: bool = False
    attribute_count: int = Field(8, ge=1)


def list_drawings(settings: EvaluationSettings, prompt_set: PromptSet) -> list[dict[str, Any]]:
    """Every picture to draw: its index, prompt and seed. No two pictures share a seed."""
    count = settings.prompt_count or min(prompt_set.default_count, len(prompt_set.prompts))
    if count > len(prompt_set.prompts):
        raise EvaluationError(
            f"evaluation.prompt_count: {count} prompts asked for, but {prompt_set.name} has "
            f"{len(prompt_set.prompts)}; ask for fewer or give more with --prompts FILE"
        )
    prompts = prompt_set.take(count)
    per_prompt = settings.seeds_per_prompt
    return [
        {"index": index, "prompt": prompts[index // per_prompt], "seed": settings.seed + index}
        for index in range(count * per_prompt)
    ]


def choose_some(drawings: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most `count` drawings, spread evenly, so that a few still cover every sort of prompt."""
    count = min(count, len(drawings))
    return [drawings[place * len(drawings) // count] for place in range(count)]
