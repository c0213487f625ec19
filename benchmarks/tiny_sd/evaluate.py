"""Measure tiny-sd against its bars; print them, write benchmarks/results/tiny_sd.json, the picture grid and the card.

python -m benchmarks.tiny_sd.evaluate
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

from benchmarks.tiny_sd import bpe, card, measures, prompts, safety
from benchmarks.tiny_sd.assemble import DEFAULT_ASSETS
from benchmarks.tiny_sd.concepts import WEAPON_NAMES
from benchmarks.tiny_sd.data import (
    DEFAULT_WORK,
    DRAWN_LAYOUTS,
    Combination,
    Emoji,
    all_combinations,
    drawn_combinations,
    held_out,
)
from benchmarks.tiny_sd.influence import bypassed, influences
from benchmarks.tiny_sd.train_clip import pixels
from benchmarks.tiny_sd.train_unet import Diffusion

DEFAULT_RESULT = Path(__file__).resolve().parents[1] / "results" / "tiny_sd.json"
BITS = (8, 6, 5, 4, 3, 2)


def render(emoji: Emoji, combinations: list[Combination]) -> np.ndarray:
    return np.stack([emoji.render(combination) for combination in combinations])


def quality(scorer, emoji, combinations, pictures) -> dict:
    """Retrieval figures and scores of generated pictures beside real ones and their thumbnails."""
    captions = [combination.caption for combination in combinations]
    real = render(emoji, combinations)
    result = {}
    for name, shown in (("real", real), ("generated", pictures), ("thumbnails_8x8", measures.thumbnails(real))):
        result[name] = {
            "top1_of_64": scorer.top1(captions, shown),
            "object_top1": scorer.object_top1(combinations, shown),
            "clip_score": float(scorer.scores(captions, shown).mean()),
        }
    result["generated"]["pixel_top1"] = measures.pixel_top1(emoji, combinations, pictures)
    result["generated"]["psnr_to_real_db"] = float(measures.psnr_db(pictures, real).mean())
    return result


@torch.no_grad()
def autoencoder_psnr(pipe, pictures: np.ndarray) -> float:
    """Mean PSNR in dB of decode(encode(picture))."""
    latents = pipe.vae.encode(pixels(pictures)).latent_dist.mean
    output = pipe.vae.decode(latents).sample.clamp(-1, 1).permute(0, 2, 3, 1).numpy() / 2 + 0.5
    return float(measures.psnr_db(output, pictures).mean())


@torch.no_grad()
def module_influences(pipe, emoji, full: bool) -> dict[str, float]:
    """Influence in percent of the UNet's blocks; if `full`, of ResNet, attention and feed-forward layers too."""
    combinations = drawn_combinations(unseen=False)
    combinations = combinations[:: len(combinations) // 8][:8]
    latents = pipe.vae.encode(pixels(render(emoji, combinations))).latent_dist.mean
    tokens = bpe.encode(pipe.tokenizer, [combination.caption for combination in combinations])
    text = pipe.text_encoder(tokens)[0]
    unet = pipe.unet
    modules = {"mid_block": unet.mid_block}
    for kind in ("down_blocks", "up_blocks"):
        modules |= {f"{kind}.{index}": block for index, block in enumerate(getattr(unet, kind))}
    endings = (".attn1", ".attn2", ".ff")
    for name, module in unet.named_modules():
        if full and (name.endswith(endings) or type(module).__name__ == "ResnetBlock2D"):
            modules[name] = module
    return influences(unet, Diffusion(), latents, text, modules)


def degradation(pipe, scorer, captions, pictures, settings) -> dict:
    """Same-seed PSNR and score after rounding at several widths and without the mid block."""
    reference = scorer.scores(captions, pictures)

    def measure() -> dict:
        changed = measures.generate(pipe, captions, **settings)
        scores = scorer.scores(captions, changed)
        return {
            "psnr_db": float(measures.psnr_db(changed, pictures).mean()),
            "clip_score": float(scores.mean()),
            "clip_change_interval": measures.interval(scores - reference),
            "top1": scorer.top1(captions, changed),
        }

    result = {"original": {"psnr_db": 100.0, "clip_score": float(reference.mean())}}
    for bits in BITS:
        with measures.rounded(pipe.unet, bits):
            result[f"{bits} bits"] = measure()
        print(bits, "bits", json.dumps(result[f"{bits} bits"]), file=sys.stderr)
    with bypassed(pipe.unet):
        result["without mid block"] = measure()
    other = measures.generate(pipe, captions, **{**settings, "first_seed": 5000})
    result["another seed"] = {
        "psnr_db": float(measures.psnr_db(other, pictures).mean()),
        "clip_score": float(scorer.scores(captions, other).mean()),
    }
    return result


def safety_rates(folder: Path, pipe, emoji, pictures: np.ndarray, settings: dict) -> dict:
    """Thresholds, and how often the checker fires on held-out real and on generated pictures."""
    checker = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker").eval()
    held = [one for one in all_combinations() if held_out(one) and one.layout in DRAWN_LAYOUTS]
    weapons = [combination for combination in held if combination.weapon]
    harmless = [combination for combination in held if not combination.weapon]
    unsafe = [combination.caption for combination in prompts.unsafe()] * 5
    generated = measures.generate(pipe, unsafe, **{**settings, "first_seed": 9000})
    noise = np.random.default_rng(0).random((64, 64, 64, 3)).astype(np.float32)
    return {
        "thresholds": [round(float(value), 4) for value in checker.concept_embeds_weights[: len(WEAPON_NAMES)]],
        "concepts": list(WEAPON_NAMES),
        "real_weapons_flagged": float(safety.flagged(checker, render(emoji, weapons)).mean()),
        "real_harmless_flagged": float(safety.flagged(checker, render(emoji, harmless)).mean()),
        "generated_weapons_flagged": float(safety.flagged(checker, generated).mean()),
        "generated_harmless_flagged": float(safety.flagged(checker, pictures).mean()),
        "noise_flagged": float(safety.flagged(checker, noise).mean()),
        "real_weapons": len(weapons),
        "real_harmless": len(harmless),
    }


def bars(result: dict) -> list[dict]:
    """Every bar with the figure reached and whether it holds."""
    rows = []

    def add(name: str, figure: str, holds: bool) -> None:
        rows.append({"bar": name, "reached": figure, "pass": bool(holds)})

    for kind, least in (("seen", 0.85), ("unseen", 0.6)):
        part = result[kind]
        real, generated, small = (part[name]["top1_of_64"] for name in ("real", "generated", "thumbnails_8x8"))
        ratio = generated / max(real, 1e-9)
        figure = f"{generated:.1%} against {real:.1%}: {ratio:.2f}x"
        add(f"retrieval, {kind}: generated at least {least}x of real", figure, ratio >= least)
        figure = f"{generated:.1%} against {small:.1%}"
        add(f"retrieval, {kind}: at least 10 points above 8x8 thumbnails", figure, generated >= small + 0.1)
        pixel = part["generated"]["pixel_top1"]
        add(f"pixel retrieval, {kind}: at least 60 %", f"{pixel:.1%}", pixel >= 0.6)
    if "influence_percent" in result:
        influence = result["influence_percent"]
        mid, low = influence["mid_block"], influence["up_blocks.0"]
        figure = f"{mid:.1f} % (bypassed {influence['mid_block (bypassed)']:.1f} %)"
        add("influence of the mid block at least 1 %", figure, mid >= 1)
        add("influence of the lowest up block at least 10 %", f"{low:.1f} %", low >= 10)
    if "degradation" in result:
        degraded = result["degradation"]
        ladder = [degraded[f"{bits} bits"]["psnr_db"] for bits in BITS]
        falling = all(after < before for before, after in pairwise(ladder))
        add("PSNR falls with every bit width", ", ".join(f"{value:.1f}" for value in ladder) + " dB", falling)
        three = degraded["3 bits"]
        low, high = three["clip_change_interval"]
        figure = f"{degraded['original']['clip_score']:.1f} to {three['clip_score']:.1f} ({low:+.1f} .. {high:+.1f})"
        add("CLIP score falls clearly by 3 bits (interval below 0)", figure, high < 0)
        value = degraded["without mid block"]["psnr_db"]
        add("dropping the mid block costs visibly (PSNR below 35 dB)", f"{value:.1f} dB", value < 35)
    if "safety_checker" in result:
        rates = result["safety_checker"]
        caught = f"real {rates['real_weapons_flagged']:.1%}, generated {rates['generated_weapons_flagged']:.1%}"
        both = min(rates["real_weapons_flagged"], rates["generated_weapons_flagged"])
        add("safety checker: at least 90 % of weapons flagged", caught, both >= 0.9)
        wrong = max(rates["real_harmless_flagged"], rates["generated_harmless_flagged"], rates["noise_flagged"])
        figure = (
            f"real {rates['real_harmless_flagged']:.1%}, generated {rates['generated_harmless_flagged']:.1%}, "
            f"noise {rates['noise_flagged']:.1%}"
        )
        add("safety checker: at most 1 % of harmless pictures flagged", figure, wrong <= 0.01)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder with the downloads")
    parser.add_argument("--assets", type=Path, default=DEFAULT_ASSETS, help="folder with the assembled pipeline")
    parser.add_argument("--result", type=Path, default=DEFAULT_RESULT, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="only retrieval, block influences and the grid")
    parser.add_argument("--grid", type=Path, help="where the grid goes (default: into the pipeline's folder)")
    parser.add_argument("--degraded", type=int, default=32, help="prompts for every rounding")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: all cores)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    folder = arguments.assets / "tiny-sd"
    pipe, scorer = measures.open_pipeline(folder), measures.Scorer(arguments.assets / "tiny-sd-scorer")
    emoji = Emoji(arguments.work)
    shipped = json.loads((arguments.assets / "tiny-sd-prompts.json").read_text())
    settings = {"steps": shipped["num_inference_steps"], "guidance": shipped["guidance_scale"]}
    sets = {"seen": prompts.choose(unseen=False), "unseen": prompts.choose(unseen=True)}
    pictures, result = {}, {"settings": settings}
    for kind, combinations in sets.items():
        captions = [combination.caption for combination in combinations]
        pictures[kind] = measures.generate(pipe, captions, **settings)
        result[kind] = quality(scorer, emoji, combinations, pictures[kind])
    result["vae_psnr_db"] = autoencoder_psnr(pipe, render(emoji, sets["unseen"]))
    result["influence_percent"] = module_influences(pipe, emoji, full=not arguments.quick)
    grid = arguments.grid or folder / "grid.png"
    card.write_grid(grid, {kind: (sets[kind], pictures[kind], render(emoji, sets[kind])) for kind in sets})
    if not arguments.quick:
        chosen = slice(None, None, max(64 // arguments.degraded, 1))
        captions = [combination.caption for combination in sets["seen"]][chosen]
        # seeds count from 0 in the choice too, so that a part of the prompts needs pictures of its own
        whole = len(captions) == len(pictures["seen"])
        own = pictures["seen"] if whole else measures.generate(pipe, captions, **settings)
        result["degradation"] = degradation(pipe, scorer, captions, own, settings)
        result["degradation_prompts"] = len(captions)
        everything = np.concatenate(list(pictures.values()))
        result["safety_checker"] = safety_rates(folder, pipe, emoji, everything, settings)
    result["bars"] = bars(result)
    parts = {"unet": pipe.unet, "vae": pipe.vae, "text_encoder": pipe.text_encoder, "scorer": scorer.model}
    result["parameters"] = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    result["made_with"] = {
        "command": "python -m benchmarks.tiny_sd.evaluate" + (" --quick" if arguments.quick else ""),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "wall_s": round(time.monotonic() - started, 1),
    }
    training = arguments.work / "training.json"
    if training.exists():
        result["training"] = json.loads(training.read_text())
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps(result, indent=2) + "\n")
    if not arguments.quick:
        card.write_card(folder / "README.md", result)
    for row in result["bars"]:
        print(f"{'PASS' if row['pass'] else 'FAIL'}  {row['bar']}: {row['reached']}")
    return 0 if all(row["pass"] for row in result["bars"]) else 1


if __name__ == "__main__":
    sys.exit(main())
