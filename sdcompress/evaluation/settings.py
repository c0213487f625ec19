"""What an evaluation is asked for: prompts, sampler, devices, and what is measured besides the pictures themselves.

Each field is an option of the command line too, under its own name or that in its `json_schema_extra`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sdcompress.calibration.prompt_files import read_prompts
from sdcompress.calibration.prompts import PromptSet
from sdcompress.errors import EvaluationError
from sdcompress.evaluation.samples import Drawing

NoiseSource = Literal["seed", "bfloat16", "batch"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]


class EvaluationSettings(BaseModel):
    """How to evaluate. None means: what the pipeline or its prompt set says."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)

    prompts: PromptSet | None = None
    """A file of prompts, one a line (default: built-in prompts)."""
    prompt_count: int | None = Field(None, ge=1, json_schema_extra={"option": "--count"})
    """Use exactly this many of the prompts (default: until the verdict's intervals are narrow enough)."""
    seeds_per_prompt: int = Field(1, ge=1, json_schema_extra={"option": "--seeds"})
    """Pictures per prompt, each with a seed of its own."""
    seed: int = Field(0, ge=0)
    """Seed of the first picture."""
    num_inference_steps: int | None = Field(None, ge=1, json_schema_extra={"option": "--steps"})
    """Denoising steps (default: the model's own)."""
    guidance_scale: float | None = Field(None, ge=0, json_schema_extra={"option": "--guidance"})
    """Guidance scale (default: the model's own)."""
    strength: float | None = Field(None, gt=0, le=1)
    """How much of a picture is drawn over (default: the model's own)."""
    image: Path | None = None
    """A picture to draw from, or a folder (default: built-in ones), where one is needed."""
    mask: Path | None = None
    """White where --image is to be drawn anew: a file, or a folder."""
    height: int | None = Field(None, ge=8, multiple_of=8)
    """Pixels, a multiple of 8 (default: the model's own)."""
    width: int | None = Field(None, ge=8, multiple_of=8)
    """Pixels, a multiple of 8 (default: the model's own)."""
    device: str = "auto"
    """auto, cpu, cuda or mps; ONNX folders also directml, openvino."""
    dtype: Dtype = "auto"
    """auto, float32, float16 or bfloat16 (of torch pipelines)."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each process."""
    low_memory: bool = False
    """Hold one component of an ONNX folder at a time."""
    latency_repeats: int = Field(1, ge=1)
    """How often each picture is drawn, to time it."""
    clip: str | None = None
    """Folder of the CLIP model that scores (default: the one that fits)."""
    use_clip: bool = Field(True, json_schema_extra={"option": "--use-clip/--no-clip"})
    """Score the pictures with a CLIP model."""
    noise_floor: tuple[NoiseSource, ...] = ("seed", "bfloat16")
    """Sources of noise to measure on the original: seed, bfloat16, batch, by commas; or none."""
    noise_floor_count: int = Field(8, ge=2)
    """Pictures of each source of noise."""
    component_metrics: bool = True
    """Compare the components one by one, on a few prompts."""
    component_metrics_count: int = Field(4, ge=1)
    """Pictures that the components are compared on."""
    attribute: bool = False
    """Swap one component, and one step at a time, into the original."""
    attribute_count: int = Field(8, ge=1)
    """Pictures of each swap."""

    @field_validator("prompts", mode="before")
    @classmethod
    def _read_prompts(cls, value: Any) -> Any:
        return read_prompts(Path(value)) if isinstance(value, str | Path) else value


def list_drawings(settings: EvaluationSettings, prompt_set: PromptSet) -> list[Drawing]:
    """Return every picture that may be drawn. No two share a seed.

    Raises:
        EvaluationError: more prompts are asked for than there are.
    """
    count = settings.prompt_count or min(prompt_set.default_count, len(prompt_set.prompts))
    if count > len(prompt_set.prompts):
        raise EvaluationError(
            f"evaluation.prompt_count: {count} prompts asked for, but {prompt_set.name} has "
            f"{len(prompt_set.prompts)}; ask for fewer or give more with --prompts FILE"
        )
    prompts = prompt_set.take(count)
    per_prompt = settings.seeds_per_prompt
    return [
        Drawing(index=index, prompt=prompts[index // per_prompt], seed=settings.seed + index)
        for index in range(count * per_prompt)
    ]


def choose_some(drawings: Sequence[Drawing], count: int) -> list[Drawing]:
    """Return at most `count` drawings, spread evenly, so that a few still cover every sort of prompt."""
    count = min(count, len(drawings))
    return [drawings[place * len(drawings) // count] for place in range(count)]
