"""Batches of a training run. They depend on the seed and the batch's number alone, so that a run can continue."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sdcompress.backends.torch.training.pool import Pool


@dataclass(frozen=True)
class Batch:
    """The inputs of a denoiser: noisy latents, their timesteps, and the prompts' embeddings."""

    sample: torch.Tensor  # [batch, channels, height, width]
    timestep: torch.Tensor  # [batch]
    conditions: dict[str, torch.Tensor]

    def run(self, model: Any) -> torch.Tensor:
        """Return the model's prediction in float32."""
        added = {name: value for name, value in self.conditions.items() if name in ("text_embeds", "time_ids")}
        output = model(
            self.sample,
            self.timestep,
            encoder_hidden_states=self.conditions["encoder_hidden_states"],
            timestep_cond=self.conditions.get("timestep_cond"),
            added_cond_kwargs=added or None,
            return_dict=False,
        )
        return output[0].float()  # type: ignore[no-any-return]


def draw_batch(pool: Pool, size: int, trajectory_share: float, seed: int, number: int, device: torch.device) -> Batch:
    """Return the batch of that number: points of trajectories, and ends of trajectories with new noise.

    Points are at the timesteps that the sampler visits, and include the error of its steps. Ends get noise of any
    timestep of the training schedule and never repeat: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e (DDPM, arXiv:2006.11239,
    equation 4). Each comes with its prompt or, as often, with the negative prompt of guidance.
    """
    generator = torch.Generator().manual_seed(_seed_of(seed, number))

    def integers(below: int) -> torch.Tensor:
        return torch.randint(below, (size,), generator=generator)

    prompts, branches = integers(len(pool.points)), integers(pool.branches)
    places, timesteps = integers(len(pool.timesteps)), integers(len(pool.alphas))
    drawn = torch.rand(size, generator=generator) < trajectory_share
    noise = torch.randn((size, *pool.ends.shape[1:]), generator=generator)
    signal = pool.alphas[timesteps].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * pool.ends[prompts] + (1 - signal).sqrt() * noise
    sample = torch.where(drawn.view(-1, 1, 1, 1), pool.points[prompts, places].float(), noisy)
    timestep = torch.where(drawn, pool.timesteps[places], timesteps.float())
    conditions = {name: value[prompts, branches].float().to(device) for name, value in pool.conditions.items()}
    return Batch(sample.to(device), timestep.to(device), conditions)


def _seed_of(seed: int, number: int) -> int:
    """Return a seed of 32 bits, all that torch's CPU generator uses, which differs for each seed and number."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "little")
