"""Put the trained parts together as the diffusers folder, the scorer and the prompts that ship in the wheel.

    python -m benchmarks.tiny_sd.assemble

Parts that are not trained yet are filled in untrained, so that the layout of the folder can be relied on early.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer

from benchmarks.tiny_sd import prompts, safety, train_clip, train_unet, train_vae
from benchmarks.tiny_sd.data import DEFAULT_WORK, Emoji
from benchmarks.tiny_sd.training import load_checkpoint

DEFAULT_ASSETS = Path(__file__).resolve().parents[2] / "sdcompress" / "assets"
KEPT_FILES = ("README.md", "grid.png")  # evaluate.py writes these into the finished folder


def trained(model: torch.nn.Module, path: Path) -> tuple[torch.nn.Module, int]:
    """The model in evaluation mode with its checkpoint's weights, and their steps (0 without a checkpoint)."""
    state = load_checkpoint(path)
    if state is not None:
        model.load_state_dict(state["weights"])
    return model.eval(), state["steps"] if state else 0


def image_processor() -> CLIPImageProcessor:
    """64 px, to -1..1; the shipped pictures are 64 px already, so that nothing is resampled."""
    return CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def pipeline(work: Path) -> StableDiffusionPipeline:
    """The whole pipeline in float32."""
    tokenizer_folder = work / "tokenizer_pipeline"
    clip_tokenizer = train_clip.tokenizer_of("pipeline", work)
    clip, clip_steps = trained(train_clip.build("pipeline", clip_tokenizer), work / "clip_pipeline_final.pt")
    vae, _ = trained(train_vae.build(), work / "vae_final.pt")
    unet, _ = trained(train_unet.build(), work / "unet_final.pt")
    text_encoder = CLIPTextModel(clip.config.text_config).eval()
    trained_together = load_checkpoint(work / "unet_final.pt")
    weights = trained_together["text_weights"] if trained_together else clip.text_model.state_dict()
    text_encoder.text_model.load_state_dict(weights)
    emoji = Emoji(work) if clip_steps else None
    checker = safety.build(clip, emoji, work / "safety.pt", clip_steps)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer_folder),
        unet=unet,
        scheduler=DDIMScheduler(**train_unet.SCHEDULER),
        safety_checker=checker,
        feature_extractor=image_processor(),
        requires_safety_checker=True,
    )


def declare_float32(config: Path) -> None:
    """Have transformers 5, which loads in the dtype of config.json, open the fp16 file in float32 as diffusers does."""
    content = json.loads(config.read_text())
    for part in (content, content.get("text_config"), content.get("vision_config")):
        if isinstance(part, dict):
            part.pop("torch_dtype", None)
            part["dtype"] = "float32"
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def training_summary(work: Path) -> dict:
    """Minutes and steps of every part that is trained, for the model card."""
    notes = {
        "vae": lambda final: f"{final['psnr_db']:.1f} dB",
        "clip_pipeline": lambda final: f"finds its caption among 128 held out: {final['held_out_top1_of_128']:.1%}",
        "clip_scorer": lambda final: f"finds its caption among 128 held out: {final['held_out_top1_of_128']:.1%}",
        "unet": lambda final: f"last training loss {final['loss']:.3f}" if "loss" in final else "",
    }
    summary = {}
    for name, note in notes.items():
        final, checkpoint = load_checkpoint(work / f"{name}_final.pt"), load_checkpoint(work / f"{name}.pt")
        if final and checkpoint:
            minutes = round(checkpoint["elapsed_s"] / 60, 1)
            summary[name] = {"minutes": minutes, "steps": final["steps"], "note": note(final)}
    return summary


def replace_folder(fresh: Path, target: Path) -> None:
    """Put `fresh` where `target` is; a reader sees the old folder or the new one."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def write_pipeline(work: Path, target: Path) -> None:
    """Save the pipeline in fp16 to `target`, keeping the model card that is there."""
    fresh = target.with_name(f".{target.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline(work).to(torch.float16).save_pretrained(fresh, safe_serialization=True)
    for part in ("text_encoder", "safety_checker"):
        declare_float32(fresh / part / "config.json")
    shutil.copy(work / "tokenizer_pipeline" / "tokenizer.json", fresh / "tokenizer" / "tokenizer.json")
    for name in KEPT_FILES:
        if (target / name).exists():
            shutil.copy(target / name, fresh / name)
    replace_folder(fresh, target)


def write_scorer(work: Path, target: Path) -> None:
    """Save the scorer in fp16 with tokenizer and image processor."""
    fresh = target.with_name(f".{target.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    tokenizer = train_clip.tokenizer_of("scorer", work)
    scorer, _ = trained(train_clip.build("scorer", tokenizer), work / "clip_scorer_final.pt")
    scorer.to(torch.float16).save_pretrained(fresh, safe_serialization=True)
    declare_float32(fresh / "config.json")
    # vocab.json and merges.txt are enough for both of CLIP's tokenizers; tokenizer.json would say the same again.
    skipped = shutil.ignore_patterns("tokenizer.json")
    shutil.copytree(work / "tokenizer_scorer", fresh, dirs_exist_ok=True, ignore=skipped)
    image_processor().save_pretrained(fresh)
    replace_folder(fresh, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder for downloads and checkpoints")
    parser.add_argument("--assets", type=Path, default=DEFAULT_ASSETS, help="folder to write to")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    arguments.assets.mkdir(parents=True, exist_ok=True)
    write_pipeline(arguments.work, arguments.assets / "tiny-sd")
    write_scorer(arguments.work, arguments.assets / "tiny-sd-scorer")
    text = json.dumps(prompts.as_json(), indent=2) + "\n"
    (arguments.assets / "tiny-sd-prompts.json").write_text(text)
    (arguments.work / "training.json").write_text(json.dumps(training_summary(arguments.work), indent=2) + "\n")
    size_bytes = sum(path.stat().st_size for path in arguments.assets.rglob("*") if path.is_file())
    print(json.dumps({"assets": str(arguments.assets), "size_mb": round(size_bytes / 1e6, 2)}))


if __name__ == "__main__":
    main()
