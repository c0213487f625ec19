"""What calibration runs draw: prompts, seeds and sampler settings; and what they observe of a layer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sdcompress.calibration.prompts import PromptSet, default_prompts, is_tiny_sd
from sdcompress.errors import Problem, RecipeError
from sdcompress.sources.source import Source

if TYPE_CHECKING:
    from sdcompress.quant.histogram import Histogram

# Calibration draws from the seeds `seed + FIRST_SEED`, `seed + FIRST_SEED + 1`, ...: an evaluation counts from `seed`,
# and none of its pictures should start from noise that calibration saw. (torch's generator for CPUs uses the low 32
# bits of a seed.)
FIRST_SEED = 2**31


def count_own_prompts(value: Any) -> Any:
    """Return a model's raw fields with `prompt_count` set to the number of its own `prompts`, all of which are used.

    Raises:
        ValueError: `prompt_count` has another value.
    """
    if isinstance(value, dict) and isinstance(value.get("prompts"), list | tuple):
        count = len(value["prompts"])
        if value.get("prompt_count", count) != count:
            raise ValueError(f"prompt_count: leave it out, because all {count} prompts are used")
        return {**value, "prompt_count": count}
    return value


class Calibration(BaseModel):
    """The pictures that calibrated steps draw. None means: what the pipeline or its prompt set says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: tuple[str, ...] | None = Field(
        None, min_length=1, description="prompts to draw; built-in ones that no evaluation draws if left out"
    )
    prompt_count: int = Field(8, ge=1, description="number of built-in prompts")
    seed: int = Field(0, ge=0, description="seed of the first picture; the others count from it")
    num_inference_steps: int | None = Field(None, ge=1, description="denoising steps")
    guidance_scale: float | None = Field(None, ge=0, description="scale of classifier-free guidance")
    height: int | None = Field(None, ge=8, multiple_of=8, description="height of a picture in pixels")
    width: int | None = Field(None, ge=8, multiple_of=8, description="width of a picture in pixels")
    range: Literal["mse", "minmax", "percentile"] = Field(
        "mse", description="how activation ranges are chosen from histograms"
    )

    @model_validator(mode="before")
    @classmethod
    def _count_own_prompts(cls, value: Any) -> Any:
        return count_own_prompts(value)


@dataclasses.dataclass(frozen=True)
class WantedHistograms:
    """Which histograms of a layer are wanted besides that of its input.

    Args:
        first_token: one of the input's first row along its second axis, which the input's own then lacks.
        output: one of its output.
    """

    first_token: bool = False
    output: bool = False


@dataclasses.dataclass(frozen=True)
class LayerHistograms:
    """Histograms of a layer's input and output."""

    input: Histogram
    first_token: Histogram | None = None
    output: Histogram | None = None


def choose_prompts(calibration: Calibration, source: Source) -> PromptSet:
    """Return the prompts to draw, with their sampler settings (None: the pipeline's own default).

    Built-in prompts that an evaluation draws by default come last, so that a pipeline is not calibrated on what it is
    evaluated on, as far as there are others.

    Raises:
        RecipeError: there are not enough prompts.
    """
    known = default_prompts(is_tiny_sd(source))
    if calibration.prompts is not None:
        name, prompts = "the recipe's own", calibration.prompts
    else:
        name, prompts = f"{known.name}, for calibration", _apart_from_evaluation(known, calibration.prompt_count)
    steps, guidance = calibration.num_inference_steps, calibration.guidance_scale
    return PromptSet(
        name,
        prompts,
        default_count=len(prompts),
        num_inference_steps=known.num_inference_steps if steps is None else steps,
        guidance_scale=known.guidance_scale if guidance is None else guidance,
    )


def _apart_from_evaluation(known: PromptSet, count: int) -> tuple[str, ...]:
    if count > len(known.prompts):
        what = f"{count} prompts asked for, but {known.name} has {len(known.prompts)}"
        raise RecipeError(
            Problem("calibration.prompt_count", f"{what}; ask for fewer or list your own under calibration.prompts")
        )
    evaluated = known.take(min(known.default_count, len(known.prompts)))
    others = tuple(prompt for prompt in known.prompts if prompt not in evaluated)
    if count <= len(others):
        return dataclasses.replace(known, prompts=others).take(count)
    return others + tuple(reversed(evaluated))[: count - len(others)]
