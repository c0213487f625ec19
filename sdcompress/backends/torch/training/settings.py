"""Settings of a training run that recovers a pruned component."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sdcompress.calibration.settings import count_own_prompts


class TrainingSettings(BaseModel):
    """How to train a pruned component, and on what. `recover` takes these fields in a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: float | None = Field(
        default=None, gt=0, description="minutes of training, after the trajectories are drawn"
    )
    steps: int | None = Field(default=None, ge=1, description="instead: optimizer steps")
    batch_size: int = Field(default=16, ge=1, description="samples in a batch")
    gradient_accumulation: int = Field(default=1, ge=1, description="batches in a step")
    learning_rate: float = Field(default=5e-4, gt=0, description="learning rate of AdamW")
    warmup_steps: int = Field(default=20, ge=0, description="steps over which the learning rate rises to its value")
    max_gradient_norm: float = Field(default=1.0, gt=0, description="gradients are clipped to this norm")
    ema_decay: float = Field(default=0.99, ge=0, lt=1, description="decay of the weights' moving average")
    feature_loss_weight: float = Field(
        default=1.0, ge=0, description="weight of the loss on features; 0: predictions alone"
    )
    trajectory_share: float = Field(
        default=0.5, ge=0, le=1, description="share of samples from trajectories; the others are latents with new noise"
    )
    prompts: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="prompts to draw; if left out, composed ones that no evaluation draws"
    )
    prompt_count: int = Field(default=64, ge=1, description="number of composed prompts")
    seed: int = Field(default=0, ge=0, description="seed of trajectories and batches")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16: weights stay in float32, arithmetic is mixed"
    )
    lora_rank: int | None = Field(
        default=None, ge=1, description="train low-rank updates of this rank; if left out, all weights are trained"
    )
    checkpoint_minutes: float = Field(default=1.0, ge=0, description="minutes between checkpoints; 0: at every step")

    @model_validator(mode="before")
    @classmethod
    def _count_own_prompts(cls, value: Any) -> Any:
        return count_own_prompts(value)
