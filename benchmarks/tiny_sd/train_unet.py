"""Train the UNet2DConditionModel on precomputed latents, with synchronised single-thread workers.

python -m benchmarks.tiny_sd.train_unet --minutes 90

The text encoder, trained against pictures by train_clip, hardly tells `left` from `right`: its embeddings of the two
differ by 5 %. After `--text-from` minutes it is therefore trained together with the UNet.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from benchmarks.tiny_sd import bpe, train_clip, train_vae
from benchmarks.tiny_sd.data import DEFAULT_WORK, Emoji, drawn_combinations
from benchmarks.tiny_sd.influence import block_influences
from benchmarks.tiny_sd.training import Average, TimeBudget, load_checkpoint, report, save_atomically, set_learning_rate

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}
CAPTION_DROPOUT = 0.1
# share of samples that pass the bottom without its skip connections, which keeps the mid block alive
SKIP_DROPOUT = 0.1


def build() -> UNet2DConditionModel:
    """The untrained UNet: 16x16, 8x8 and 4x4, text enters at 8x8 and below, so content has to pass through there."""
    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 192),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=192,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    model.set_attn_processor(AttnProcessor())  # the fused attention's backward is slow on a CPU
    return model


class Conditioned(torch.nn.Module):
    """UNet and text encoder as one model of latents, timesteps and caption tokens [n, 32]."""

    def __init__(self, work: Path) -> None:
        super().__init__()
        self.unet = build()
        clip = train_clip.build("pipeline", train_clip.tokenizer_of("pipeline", work))
        clip.load_state_dict(load_checkpoint(work / "clip_pipeline_final.pt")["weights"])
        self.text = clip.text_model

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Text embeddings [n, 32, 192]."""
        return self.text(input_ids=tokens).last_hidden_state

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.unet(latents, timesteps, encoder_hidden_states=self.embed(tokens)).sample


@torch.no_grad()
def prepare(work: Path) -> dict:
    """Latents [n, 4, 16, 16], caption tokens [n, 32] and the empty caption's [32], computed once per VAE."""
    path = work / "prepared.pt"
    vae_state = load_checkpoint(work / "vae_final.pt")
    if vae_state is None or not (work / "clip_pipeline_final.pt").exists():
        raise SystemExit("train the VAE and the pipeline's CLIP first (train_vae, train_clip pipeline)")
    combinations = drawn_combinations(unseen=False)
    made_from = ["tokens", vae_state["steps"], len(combinations)]
    prepared = load_checkpoint(path)
    if prepared is not None and prepared["made_from"] == made_from:
        return prepared
    print("precompute latents", file=sys.stderr, flush=True)
    emoji = Emoji(work)
    vae = train_vae.build().eval()
    vae.load_state_dict(vae_state["weights"])
    tokenizer = train_clip.tokenizer_of("pipeline", work)
    latents = []
    for start in range(0, len(combinations), 64):
        pictures = np.stack([emoji.render(combination) for combination in combinations[start : start + 64]])
        latents.append(vae.encode(train_clip.pixels(pictures)).latent_dist.mean)
    captions = [combination.caption for combination in combinations] + [""]
    tokens = bpe.encode(tokenizer, captions)
    prepared = {"made_from": made_from, "latents": torch.cat(latents), "tokens": tokens[:-1], "empty": tokens[-1]}
    save_atomically(prepared, path)
    return prepared


def drop_bottom_skips(model: UNet2DConditionModel, generator: torch.Generator) -> None:
    """During training, zero the skip connections into the lowest up block for a random share of the samples."""

    def before(block: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if not model.training:
            return None
        skips = kwargs["res_hidden_states_tuple"]
        keep = (torch.rand(len(skips[0]), 1, 1, 1, generator=generator) >= SKIP_DROPOUT).float()
        return args, {**kwargs, "res_hidden_states_tuple": tuple(skip * keep for skip in skips)}

    model.up_blocks[0].register_forward_pre_hook(before, with_kwargs=True)


def draw_timesteps(count: int, generator: torch.Generator) -> torch.Tensor:
    """Half of them uniform, half leaning towards high noise, where layout and object are decided."""
    uniform = torch.rand(count, generator=generator)
    leaning = torch.rand(count, generator=generator) < 0.5
    return (torch.where(leaning, uniform.sqrt(), uniform) * 1000).long().clamp(0, 999)


class Diffusion:
    """The forward process with zero terminal SNR, the v target, and the loss weight of every timestep."""

    def __init__(self) -> None:
        alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod.float()
        self.signal, self.noise = alphas.sqrt(), (1 - alphas).sqrt()
        snr = alphas / (1 - alphas).clamp_min(1e-8)
        # min-SNR-5 for v (Hang et al. 2023, sec. 3.4), clamped from below since it vanishes at zero SNR
        self.weight = (snr.clamp_max(5.0) / (snr + 1)).clamp_min(0.25)

    def loss(self, model, latents, tokens, timesteps, generator) -> torch.Tensor:
        noise = torch.randn(latents.shape, generator=generator)
        signal, sigma = self.signal[timesteps].view(-1, 1, 1, 1), self.noise[timesteps].view(-1, 1, 1, 1)
        target = signal * noise - sigma * latents
        output = model(signal * latents + sigma * noise, timesteps, tokens)
        return ((output.float() - target).square().mean(dim=(1, 2, 3)) * self.weight[timesteps]).mean()


@torch.no_grad()
def probe_loss(model, diffusion: Diffusion, latents: torch.Tensor, tokens: torch.Tensor) -> float:
    """The loss on 64 latents with the same noise and timesteps every time."""
    generator = torch.Generator().manual_seed(0)
    every = max(len(latents) // 64, 1)
    latents, tokens = latents[::every][:64], tokens[::every][:64]
    losses = []
    for timestep in range(50, 1000, 100):
        timesteps = torch.full((len(latents),), timestep)
        losses.append(float(diffusion.loss(model, latents, tokens, timesteps, generator)))
    return sum(losses) / len(losses)


def average_gradients(model: torch.nn.Module, workers: int) -> None:
    """Replace every gradient by its mean over the workers."""
    gradients = [parameter.grad for parameter in model.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= workers
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def work_on(rank: int, arguments: argparse.Namespace) -> None:
    """One worker: the same weights everywhere, different samples."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(arguments.port))
    distributed.init_process_group("gloo", rank=rank, world_size=arguments.workers, timeout=timedelta(days=1))
    prepared = prepare(arguments.work)
    latents, tokens, empty = prepared["latents"], prepared["tokens"], prepared["empty"]
    torch.manual_seed(arguments.seed)
    model, diffusion = Conditioned(arguments.work), Diffusion()
    decayed = [parameter for parameter in model.unet.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.unet.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    groups.append({"params": list(model.text.parameters()), "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), fused=True)
    average = Average(model, decay=0.99)  # of every fifth step
    budget, step, running = TimeBudget(arguments.minutes, warmup_s=60), 0, None
    path = arguments.work / "unet.pt"
    if checkpoint := load_checkpoint(path):
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        average.load(checkpoint["average"])
        step, budget.elapsed_s = checkpoint["step"], checkpoint["elapsed_s"]
    generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + step * 97 + rank)
    drop_bottom_skips(model.unet, generator)
    saved_s, looked_s = budget.elapsed_s, budget.elapsed_s
    order, used = torch.randperm(len(latents), generator=generator), 0
    shared = torch.zeros(1)

    def save(last: bool = False) -> None:
        """Write the checkpoint and the weights to ship: the average, or in the end the better of it and the model."""
        kept = Conditioned(arguments.work).eval()
        average.copy_to(kept)
        if last and probe_loss(model.eval(), diffusion, latents, tokens) < probe_loss(kept, diffusion, latents, tokens):
            kept.load_state_dict(model.state_dict())
            print("the last weights are better than the averaged ones", file=sys.stderr, flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.state()}
        save_atomically({**state, "step": step, "elapsed_s": budget.elapsed_s}, path)
        weights = {"weights": kept.unet.state_dict(), "text_weights": kept.text.state_dict()}
        final = {**weights, "steps": step, "loss": running or 0.0}
        save_atomically(final, arguments.work / "unet_final.pt")

    while True:
        budget.tick()
        shared[0] = budget.elapsed_s
        distributed.broadcast(shared, src=0)  # one clock for all, so that they stop at the same step
        budget.elapsed_s = float(shared[0])
        if budget.elapsed_s >= budget.total_s:
            break
        set_learning_rate(optimizer, arguments.learning_rate * budget.learning_rate_factor())
        if budget.elapsed_s < arguments.text_from * 60:
            optimizer.param_groups[-1]["lr"] = 0.0
        if used + arguments.batch > len(order):
            order, used = torch.randperm(len(latents), generator=generator), 0
        chosen, used = order[used : used + arguments.batch], used + arguments.batch
        drop = torch.rand(arguments.batch, 1, generator=generator) < CAPTION_DROPOUT
        conditioning = torch.where(drop, empty, tokens[chosen])
        timesteps = draw_timesteps(arguments.batch, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=not arguments.float32):
            loss = diffusion.loss(model, latents[chosen], conditioning, timesteps, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(model, arguments.workers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        if rank:
            continue
        if step % 5 == 0:
            average.update(model)
        if step % 100 == 0:
            report(step, budget, loss=running)
        if budget.elapsed_s - saved_s > 120:
            saved_s = budget.elapsed_s
            save()
        if budget.elapsed_s - looked_s > 240:
            looked_s = budget.elapsed_s
            model.eval()
            embedded = model.embed(tokens[::249][:32]).detach()
            report(step, budget, **block_influences(model.unet, diffusion, latents[::249][:32], embedded))
            model.train()
    if rank == 0:
        save(last=True)
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder for downloads and checkpoints")
    parser.add_argument("--minutes", type=float, default=60, help="net training time")
    parser.add_argument("--text-from", type=float, default=48, help="minutes after which the text encoder trains too")
    parser.add_argument("--batch", type=int, default=16, help="samples per step and worker")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast (slower on CPUs that have it)")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--port", type=int, default=29517)
    arguments = parser.parse_args()
    prepare(arguments.work)
    torch.multiprocessing.spawn(work_on, (arguments,), nprocs=arguments.workers)


if __name__ == "__main__":
    main()
