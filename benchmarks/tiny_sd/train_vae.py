"""Train the AutoencoderKL: 64x64 pictures to 16x16x4 latents of zero mean and unit deviation.

python -m benchmarks.tiny_sd.train_vae --minutes 45
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor

from benchmarks.tiny_sd.data import DEFAULT_WORK, Emoji, training_combinations
from benchmarks.tiny_sd.training import Average, TimeBudget, load_checkpoint, report, save_atomically, set_learning_rate

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (32, 48, 96),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "sample_size": 64,
    "scaling_factor": 1.0,
}


def build() -> AutoencoderKL:
    """The untrained autoencoder (1.6 M parameters)."""
    model = AutoencoderKL(**CONFIG)
    model.set_attn_processor(AttnProcessor())  # the fused attention's backward is slow on a CPU
    return model


def pictures(emoji: Emoji, combinations: list, rng: np.random.Generator, count: int) -> torch.Tensor:
    """`count` random pictures in -1..1, [n, 3, 64, 64]."""
    chosen = rng.integers(len(combinations), size=count)
    batch = np.stack([emoji.render(combinations[i], rng) for i in chosen])
    return torch.from_numpy(batch).permute(0, 3, 1, 2) * 2 - 1


def edge_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 distance of the horizontal and vertical differences: keeps edges sharp."""
    across = F.l1_loss(output.diff(dim=-1), target.diff(dim=-1))
    return across + F.l1_loss(output.diff(dim=-2), target.diff(dim=-2))


def colour_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 distance of colour differences and of 4x4 means: without it, four latent channels spend little on hue."""
    hue = F.l1_loss(output[:, ::2] - output[:, 1:2], target[:, ::2] - target[:, 1:2])
    return hue + F.l1_loss(F.avg_pool2d(output, 4), F.avg_pool2d(target, 4))


@torch.no_grad()
def peak_signal_to_noise(model: AutoencoderKL, emoji: Emoji, combinations: list) -> float:
    """Mean PSNR in dB of decode(encode(picture)) over pictures as they are (no jitter)."""
    batch = np.stack([emoji.render(combination) for combination in combinations])
    target = torch.from_numpy(batch).permute(0, 3, 1, 2) * 2 - 1
    output = model.decode(model.encode(target).latent_dist.mean).sample.clamp(-1, 1)
    error = ((output - target) / 2).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, emoji: Emoji, combinations: list) -> None:
    """Fold mean and deviation of every latent channel into quant_conv and post_quant_conv."""
    batch = np.stack([emoji.render(combination) for combination in combinations])
    target = torch.from_numpy(batch).permute(0, 3, 1, 2) * 2 - 1
    latents = torch.cat([model.encode(part).latent_dist.mean for part in target.split(64)])
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = mean.numel()
    quant, post = model.quant_conv, model.post_quant_conv
    post.bias.add_(post.weight[:, :, 0, 0] @ mean)
    post.weight.mul_(deviation[None, :, None, None])
    quant.weight[:channels].div_(deviation[:, None, None, None])
    quant.bias[:channels].sub_(mean).div_(deviation)
    quant.bias[channels:].sub_(2 * deviation.log())  # the second half predicts log variance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder for downloads and checkpoints")
    parser.add_argument("--minutes", type=float, default=45, help="net training time")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    checkpoint_path = arguments.work / "vae.pt"
    emoji, combinations = Emoji(arguments.work), training_combinations()
    probe = combinations[:: len(combinations) // 64][:64]
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=1e-3)
    average = Average(model, decay=0.998)
    budget, step = TimeBudget(arguments.minutes), 0
    if checkpoint := load_checkpoint(checkpoint_path):
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        average.load(checkpoint["average"])
        step, budget.elapsed_s = checkpoint["step"], checkpoint["elapsed_s"]
    rng = np.random.default_rng([arguments.seed, step])
    saved_s, running = budget.elapsed_s, None

    def save() -> None:
        kept = build()
        kept.load_state_dict(model.state_dict())
        average.copy_to(kept)
        normalise_latents(kept, emoji, combinations[::16])
        psnr = peak_signal_to_noise(kept, emoji, probe)
        report(step, budget, loss=running or 0, psnr_db=psnr)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.state()}
        save_atomically({**state, "step": step, "elapsed_s": budget.elapsed_s}, checkpoint_path)
        save_atomically({"weights": kept.state_dict(), "psnr_db": psnr, "steps": step}, arguments.work / "vae_final.pt")

    while budget.tick() < 1:
        set_learning_rate(optimizer, arguments.learning_rate * budget.learning_rate_factor())
        target = pictures(emoji, combinations, rng, arguments.batch)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(target).latent_dist
            output = model.decode(posterior.sample()).sample
        posterior.mean, posterior.logvar, output = posterior.mean.float(), posterior.logvar.float(), output.float()
        reconstruction = F.l1_loss(output, target) + 2 * F.mse_loss(output, target) + 0.5 * edge_loss(output, target)
        reconstruction = reconstruction + colour_loss(output, target)
        loss = reconstruction + 1e-5 * posterior.kl().mean() / 256
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        step += 1
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            report(step, budget, loss=running)
        if budget.elapsed_s - saved_s > 240:
            saved_s = budget.elapsed_s
            save()
    save()


if __name__ == "__main__":
    main()
