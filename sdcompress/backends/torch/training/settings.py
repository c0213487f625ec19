"""Settings of a training run that recovers a pruned component."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sdcompress.calibration.settings import count_own_prompts


class TrainingSettings(BaseModel):
    """How long and how to train, and on what. `recover` takes these fields in a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: float | None = Field(default=None, gt=0)  # of training, after the trajectories are drawn
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)  # batches a step
    learning_rate: float = Field(default=5e-4, gt=0)
    warmup_steps: int = Field(default=20, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    feature_loss_weight: float = Field(default=1.0, ge=0)  # 0: predictions alone
    trajectory_share: float = Field(default=0.5, ge=0, le=1)  # of samples; the others are latents with new noise
    prompts: tuple[str, ...] | None = Field(default=None, min_length=1)  # None: composed, none that evaluations draw
    prompt_count: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0)
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16: weights stay in float32, arithmetic is mixed
    lora_rank: int | None = Field(default=None, ge=1)  # None: all weights are trained
    checkpoint_minutes: float = Field(default=1.0, ge=0)  # 0: after every step

    @model_validator(mode="before")
    @classmethod
    def _count_own_prompts(cls, value: Any) -> Any:
        return count_own_prompts(value)
