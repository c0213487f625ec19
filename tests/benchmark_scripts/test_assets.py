"""The shipped pipeline and scorer: they open in stock classes, fit the size limit, and do what the card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

ASSETS = Path(__file__).resolve().parents[2] / "sdcompress" / "assets"
SIZE_LIMIT_BYTES = 55_000_000
SHIPPED = json.loads((ASSETS / "tiny-sd-prompts.json").read_text())
SEEDS = range(8)


@pytest.fixture(scope="module")
def pipe():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(ASSETS / "tiny-sd")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def scorer():
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(ASSETS / "tiny-sd-scorer").eval()


@pytest.fixture(scope="module")
def drawn(pipe):
    """The pictures of eight seen prompts that differ in layout and background, [8, 64, 64, 3] in 0..1."""
    pipe_images = pipe(
        SHIPPED["seen"][::8],
        num_inference_steps=12,
        guidance_scale=SHIPPED["guidance_scale"],
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="np",
    )
    return pipe_images


def test_assets_fit_into_the_wheel():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= SIZE_LIMIT_BYTES
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".partial"}]


def test_slow_and_fast_tokenizers_agree(pipe):
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    captions = [*SHIPPED["seen"], "An Unknown word: zebra-crossing 42!", ""]
    for folder in (ASSETS / "tiny-sd" / "tokenizer", ASSETS / "tiny-sd-scorer"):
        slow, fast = CLIPTokenizer.from_pretrained(folder), CLIPTokenizerFast.from_pretrained(folder)
        assert slow(captions).input_ids == fast(captions).input_ids
        assert slow.model_max_length == fast.model_max_length == 32


def test_pictures_are_as_asked(pipe, scorer, drawn):
    """The scorer finds the right one of the eight prompts for nearly every picture (one in eight by chance)."""
    from transformers import CLIPImageProcessor, CLIPTokenizer

    folder = ASSETS / "tiny-sd-scorer"
    pictures = pipe.numpy_to_pil(drawn.images)
    pixels = CLIPImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt").pixel_values
    tokens = CLIPTokenizer.from_pretrained(folder)(SHIPPED["seen"][::8], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = scorer(pixel_values=pixels, **tokens).logits_per_image
    assert (logits.argmax(1) == torch.arange(8)).sum() >= 6


def test_safety_checker_flags_weapons(pipe):
    """Half of the generated weapons, the card says; nobody should rely on it, but it must work as a checker does."""
    result = pipe(
        SHIPPED["unsafe"],
        num_inference_steps=12,
        guidance_scale=SHIPPED["guidance_scale"],
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(SHIPPED["unsafe"]))],
        output_type="np",
    )
    assert sum(result.nsfw_content_detected) >= len(SHIPPED["unsafe"]) / 4
