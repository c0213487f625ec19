"""What activation statistics are gathered from: prompts, seeds and sampler settings of the denoising trajectories."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sdcompress.calibration.prompts import PromptSet, default_prompts, is_tiny_sd
from sdcompress.errors import RecipeError
from sdcompress.sources.source import Source

if TYPE_CHECKING:
    from sdcompress.quant.activations import Histogram

# Pictures are drawn from seeds `seed + FIRST_SEED`, `seed + FIRST_SEED + 1`, ...: an evaluation counts from `seed`,
# and none of its pictures should begin with noise that the ranges were fitted to. (torch's generator for CPUs heeds the
# lowest 32 bits of a seed alone.)
FIRST_SEED = 2**31


def count_own_prompts(value: Any) -> Any:
    """A model's raw fields with `prompt_count` as prompts of one's own settle it: all are used.

    ValueError where `prompt_count` says otherwise.
    """
    if isinstance(value, dict) and isinstance(value.get("prompts"), list | tuple):
        count = len(value["prompts"])
        if value.get("prompt_count", count) != count:
            raise ValueError(f"prompt_count: leave it out, for all {count} prompts are used")
        return {**value, "prompt_count": count}
    return value


class Calibration(BaseModel):
    """How to gather activation statistics. None means: what the pipeline or its prompt set says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: tuple[str, ...] | None = Field(None, min_length=1)
    prompt_count: int = Field(8, ge=1)
    seed: int = Field(0, ge=0)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0)
    height: int | None = Field(None, ge=8, multiple_of=8)
    width: int | None = Field(None, ge=8, multiple_of=8)
    range: Literal["mse", "minmax", "percentile"] = "mse"

    @model_validator(mode="before")
    @classmethod
    def _count_own_prompts(cls, value: Any) -> Any:
        return count_own_prompts(value)


@dataclasses.dataclass(frozen=True)
class Watch:
    """What of a layer is observed: its input, whole or in parts, and its output if that is wanted too."""

    splits: tuple[int, ...] = ()  # input channels of parts that are observed apart; (): one part
    first_token: bool = False  # the input's first row along its second axis apart from the others
    output: bool = False


@dataclasses.dataclass(frozen=True)
class Observed:
    """What a watched layer did, as histograms."""

    inputs: tuple[Histogram, ...]
    first_token: Histogram | None = None
    output: Histogram | None = None


def choose_prompts(calibration: Calibration, source: Source) -> PromptSet:
    """The prompts to draw, with the sampler settings to draw them with (None: the pipeline's own default).

    Built-in prompts that an evaluation draws by default come last, so that as far as there are others no pipeline is
    calibrated on what it is evaluated on. Raises RecipeError when there are not enough prompts.
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
        raise RecipeError(
            f"calibration.prompt_count: {count} prompts asked for, but {known.name} has {len(known.prompts)}; "
            f"ask for fewer or list your own under calibration.prompts"
        )
    evaluated = known.take(min(known.default_count, len(known.prompts)))
    others = tuple(prompt for prompt in known.prompts if prompt not in evaluated)
    if count <= len(others):
        return dataclasses.replace(known, prompts=others).take(count)
    return others + tuple(reversed(evaluated))[: count - len(others)]
