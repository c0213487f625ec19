"""Train one of the two CLIPs: the pipeline's (text encoder and safety checker) or the scorer.

python -m benchmarks.tiny_sd.train_clip pipeline --minutes 12
python -m benchmarks.tiny_sd.train_clip scorer --minutes 12
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

from benchmarks.tiny_sd import bpe
from benchmarks.tiny_sd.data import DEFAULT_WORK, Combination, Emoji, all_combinations, held_out
from benchmarks.tiny_sd.training import Average, TimeBudget, load_checkpoint, report, save_atomically, set_learning_rate

ROLES = {
    "pipeline": {
        "seed": 11, "merges": 900, "projection": 192,
        "text": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 6},
        "vision": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 6},
    },
    "scorer": {
        "seed": 7001, "merges": 300, "projection": 160,
        "text": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4},
        "vision": {"hidden_size": 224, "intermediate_size": 896, "num_hidden_layers": 4, "num_attention_heads": 7},
    },
}  # fmt: skip


def kept_out(role: str, combination: Combination) -> bool:
    """The pipeline's CLIP never sees the UNet's unseen combinations; the scorer has held-out ones of its own."""
    return held_out(combination) if role == "pipeline" else held_out(combination, salt="scorer", one_in=8)


def build(role: str, tokenizer: CLIPTokenizerFast) -> CLIPModel:
    """The untrained CLIPModel of a role."""
    recipe = ROLES[role]
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    text = {**recipe["text"], **special, "vocab_size": len(tokenizer), "max_position_embeddings": bpe.MAX_TOKENS}
    vision = {**recipe["vision"], "image_size": 64, "patch_size": 8}
    shared = {"projection_dim": recipe["projection"]}
    config = CLIPConfig(text_config={**text, **shared}, vision_config={**vision, **shared}, **shared)
    config._attn_implementation = "eager"  # the fused attention's backward is slow on a CPU
    torch.manual_seed(recipe["seed"])
    return CLIPModel(config)


def tokenizer_of(role: str, work: Path) -> CLIPTokenizerFast:
    """The role's tokenizer, trained on the captions the first time."""
    folder = work / f"tokenizer_{role}"
    if not (folder / "tokenizer.json").exists():
        captions = [combination.caption for combination in all_combinations()]
        bpe.write(folder, bpe.train(captions, ROLES[role]["merges"]))
    return CLIPTokenizerFast.from_pretrained(folder)


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """Pictures in 0..1 [n, 64, 64, 3] as the image processor gives them: -1..1, [n, 3, 64, 64]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).float().permute(0, 3, 1, 2) * 2 - 1


def disturb(role: str, pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Augmentation on top of the jittered composition; the scorer's differs from the pipeline's."""
    noise = torch.from_numpy(rng.standard_normal(pictures.shape, dtype=np.float32))
    if role == "pipeline":
        return pictures + 0.03 * noise
    count = len(pictures)
    gain = torch.from_numpy(rng.uniform(0.88, 1.12, (count, 1, 1, 1)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-0.1, 0.1, (count, 1, 1, 1)).astype(np.float32))
    strength = torch.from_numpy(rng.uniform(0.0, 0.12, (count, 1, 1, 1)).astype(np.float32))
    return (pictures * gain + shift + strength * noise).clamp(-1, 1)


class Sampler:
    """Batches of `subjects` subjects with four combinations each, so that captions differ in every attribute."""

    def __init__(self, combinations: list[Combination], seed: list[int]) -> None:
        self.rng = np.random.default_rng(seed)
        self.by_subject: dict[tuple[str, str], list[Combination]] = {}
        for combination in combinations:
            self.by_subject.setdefault((combination.style, combination.name), []).append(combination)
        self.subjects = sorted(self.by_subject)

    def draw(self, subjects: int) -> list[Combination]:
        chosen = self.rng.choice(len(self.subjects), subjects, replace=False)
        batch = []
        for index in chosen:
            pool = self.by_subject[self.subjects[index]]
            batch += [pool[i] for i in self.rng.choice(len(pool), 4, replace=False)]
        return batch


def embeddings(model: CLIPModel, tokens: torch.Tensor, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Text and picture embeddings of unit length."""
    text = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
    picture = model.visual_projection(model.vision_model(pixel_values=pictures).pooler_output)
    return F.normalize(text.float(), dim=-1), F.normalize(picture.float(), dim=-1)


@torch.no_grad()
def retrieval(model: CLIPModel, tokenizer, emoji: Emoji, combinations: list[Combination]) -> float:
    """Share of pictures whose own caption is the nearest among all captions given."""
    tokens = bpe.encode(tokenizer, [combination.caption for combination in combinations])
    pictures = pixels(np.stack([emoji.render(combination) for combination in combinations]))
    text, picture = embeddings(model, tokens, pictures)
    return float(((picture @ text.T).argmax(1) == torch.arange(len(tokens))).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("role", choices=sorted(ROLES))
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder for downloads and checkpoints")
    parser.add_argument("--minutes", type=float, default=12, help="net training time")
    parser.add_argument("--subjects", type=int, default=24, help="subjects in a batch, four pictures each")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    role = arguments.role
    torch.set_num_threads(arguments.threads)
    tokenizer = tokenizer_of(role, arguments.work)
    emoji = Emoji(arguments.work)
    combinations = [combination for combination in all_combinations() if not kept_out(role, combination)]
    others = [combination for combination in all_combinations() if kept_out(role, combination)]
    probe = others[:: len(others) // 128][:128]
    model = build(role, tokenizer)
    checkpoint_path = arguments.work / f"clip_{role}.pt"
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98))
    average = Average(model, decay=0.99)
    budget, step, running = TimeBudget(arguments.minutes), 0, None
    if checkpoint := load_checkpoint(checkpoint_path):
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        average.load(checkpoint["average"])
        step, budget.elapsed_s = checkpoint["step"], checkpoint["elapsed_s"]
    sampler = Sampler(combinations, [ROLES[role]["seed"], step])
    saved_s = budget.elapsed_s

    def save() -> None:
        kept = build(role, tokenizer).eval()
        average.copy_to(kept)
        top1 = retrieval(kept, tokenizer, emoji, probe)
        report(step, budget, loss=running or 0, held_out_top1_of_128=top1)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.state()}
        save_atomically({**state, "step": step, "elapsed_s": budget.elapsed_s}, checkpoint_path)
        final = {"weights": kept.state_dict(), "held_out_top1_of_128": top1, "steps": step}
        save_atomically(final, arguments.work / f"clip_{role}_final.pt")

    while budget.tick() < 1:
        set_learning_rate(optimizer, arguments.learning_rate * budget.learning_rate_factor())
        batch = sampler.draw(arguments.subjects)
        tokens = bpe.encode(tokenizer, [combination.caption for combination in batch])
        rendered = pixels(np.stack([emoji.render(combination, sampler.rng) for combination in batch]))
        with torch.autocast("cpu", torch.bfloat16):
            text, picture = embeddings(model, tokens, disturb(role, rendered, sampler.rng))
        logits = model.logit_scale.exp() * text @ picture.T
        target = torch.arange(len(batch))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.logit_scale.data.clamp_(max=4.6052)  # CLIP's limit: a factor of 100
        average.update(model)
        step += 1
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 25 == 0:
            report(step, budget, loss=running)
        if budget.elapsed_s - saved_s > 120:
            saved_s = budget.elapsed_s
            save()
    save()


if __name__ == "__main__":
    main()
