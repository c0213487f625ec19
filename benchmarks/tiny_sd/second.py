"""Train and assemble a second small pipeline, on which figures found on tiny-sd are checked. It is not shipped.

    python -m benchmarks.tiny_sd.download
    python -m benchmarks.tiny_sd.second --minutes 30

It has tiny-sd's text encoder and autoencoder, and a UNet of its own: other subjects in a flat style, epsilon
prediction, noise that does not end at zero SNR, one layer a block, linear projections around attention, Euler's
sampler. The folder `second` of the work folder holds it, with `prompts.txt`: captions that it was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from benchmarks.tiny_sd import train_clip
from benchmarks.tiny_sd.data import BACKGROUNDS, DEFAULT_WORK, Combination, Emoji
from benchmarks.tiny_sd.training import Average, TimeBudget, load_checkpoint, report, save_atomically, set_learning_rate
from sdcompress.sources.source import ASSETS

SUBJECTS = (
    "banana",
    "lemon",
    "watermelon",
    "strawberry",
    "tulip",
    "rocket",
    "umbrella",
    "snowman",
    "penguin",
    "cactus",
)
LAYOUTS = ("plain", "left", "right")
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
CAPTION_DROPOUT = 0.1


def combinations() -> list[Combination]:
    """Return what it is trained on: every subject in the flat style, layout and background."""
    return [
        Combination("noto", name, layout, background)
        for name in SUBJECTS
        for layout in LAYOUTS
        for background in BACKGROUNDS
    ]


def build() -> UNet2DConditionModel:
    """Return the untrained UNet."""
    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=192,
        attention_head_dim=8,
        norm_num_groups=16,
        use_linear_projection=True,
    )
    model.set_attn_processor(AttnProcessor())  # the fused attention's backward is slow on a CPU
    return model


@torch.no_grad()
def prepare(work: Path) -> tuple[DiffusionPipeline, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tiny-sd, the pictures' scaled latents, their captions' embeddings, and the empty caption's."""
    tiny_sd = DiffusionPipeline.from_pretrained(ASSETS / "tiny-sd", torch_dtype=torch.float32)
    emoji, wanted = Emoji(work), combinations()
    latents = []
    for start in range(0, len(wanted), 64):
        pictures = np.stack([emoji.render(combination) for combination in wanted[start : start + 64]])
        latents.append(tiny_sd.vae.encode(train_clip.pixels(pictures)).latent_dist.mean)
    captions = [combination.caption for combination in wanted]
    texts, empty = tiny_sd.encode_prompt(captions, "cpu", 1, True)
    return tiny_sd, torch.cat(latents) * tiny_sd.vae.config.scaling_factor, texts, empty[:1]


def train(work: Path, minutes: float, batch: int, seed: int) -> UNet2DConditionModel:
    """Train the UNet, or go on where a run was stopped, and return its averaged weights."""
    _, latents, texts, empty = prepare(work)
    torch.manual_seed(seed)
    model = build()
    alphas = EulerDiscreteScheduler(**SCHEDULER).alphas_cumprod
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.01)
    average, budget, step, loss_mean = Average(model, decay=0.99), TimeBudget(minutes, warmup_s=60), 0, 1.0
    checkpoint_file = work / "second.pt"
    if checkpoint := load_checkpoint(checkpoint_file):
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        average.load(checkpoint["average"])
        step, budget.elapsed_s = checkpoint["step"], checkpoint["elapsed_s"]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    saved_s = budget.elapsed_s

    def save() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.state()}
        save_atomically({**state, "step": step, "elapsed_s": budget.elapsed_s}, checkpoint_file)

    while budget.tick() < 1:
        set_learning_rate(optimizer, 5e-4 * budget.learning_rate_factor())
        chosen = torch.randint(len(latents), (batch,), generator=generator)
        dropped = torch.rand(batch, 1, 1, generator=generator) < CAPTION_DROPOUT
        timesteps = torch.randint(1000, (batch,), generator=generator)
        noise = torch.randn(latents[chosen].shape, generator=generator)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents[chosen] + (1 - alpha).sqrt() * noise
        predicted = model(noisy, timesteps, torch.where(dropped, empty, texts[chosen])).sample
        loss = (predicted - noise).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, loss_mean = step + 1, 0.99 * loss_mean + 0.01 * float(loss)
        if step % 5 == 0:
            average.update(model)
        if step % 200 == 0:
            report(step, budget, loss=loss_mean)
        if budget.elapsed_s - saved_s > 120:
            saved_s = budget.elapsed_s
            save()
    save()
    average.copy_to(model)
    return model.eval()


def assemble(work: Path, unet: UNet2DConditionModel) -> Path:
    """Write the pipeline in float16 and its prompts; return its folder."""
    tiny_sd = DiffusionPipeline.from_pretrained(ASSETS / "tiny-sd", torch_dtype=torch.float32)
    pipeline = StableDiffusionPipeline(
        vae=tiny_sd.vae,
        text_encoder=tiny_sd.text_encoder,
        tokenizer=tiny_sd.tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=tiny_sd.feature_extractor,
        requires_safety_checker=False,
    )
    folder = work / "second"
    pipeline.to(torch.float16).save_pretrained(folder)
    captions = [combination.caption for combination in combinations()]
    (folder / "prompts.txt").write_text("\n".join(captions[::3]) + "\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder for downloads and checkpoints")
    parser.add_argument("--minutes", type=float, default=30, help="net training time")
    parser.add_argument("--batch", type=int, default=16, help="samples per step")
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    print(assemble(arguments.work, train(arguments.work, arguments.minutes, arguments.batch, arguments.seed)))


if __name__ == "__main__":
    main()
