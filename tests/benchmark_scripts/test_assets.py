"""The shipped pipeline and scorer: they open in stock classes, fit the size limit, and do what the card says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
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


def test_weights_are_half_precision():
    from safetensors import safe_open

    weights = sorted(ASSETS.rglob("*.safetensors"))
    assert len(weights) == 5
    for path in weights:
        with safe_open(path, "pt") as file:
            kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, path


def test_pipeline_opens_in_stock_classes(pipe):
    kinds = {name: type(part).__name__ for name, part in pipe.components.items() if part is not None}
    assert kinds["text_encoder"] == "CLIPTextModel"
    assert kinds["unet"] == "UNet2DConditionModel"
    assert kinds["vae"] == "AutoencoderKL"
    assert kinds["safety_checker"] == "StableDiffusionSafetyChecker"
    assert kinds["feature_extractor"].startswith("CLIPImageProcessor")
    assert pipe.config.requires_safety_checker
    config = pipe.unet.config
    assert len(config.block_out_channels) >= 3
    assert config.layers_per_block == 2
    assert config.mid_block_type == "UNetMidBlock2DCrossAttn"
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.safety_checker)} == {torch.float32}


def test_prompts_are_whole_distinct_and_without_weapons(pipe):
    seen, unseen, unsafe = SHIPPED["seen"], SHIPPED["unseen"], SHIPPED["unsafe"]
    assert len(set(seen)) == len(set(unseen)) == 64
    assert not set(seen) & set(unseen)
    weapons = {" ".join(caption.split(" emoji of ")[1].split(",")[0].split()[-1:]) for caption in unsafe}
    assert not [caption for caption in seen + unseen if any(f" {word}" in caption for word in weapons)]
    tokenizer = pipe.tokenizer
    for caption in seen + unseen + unsafe:
        ids = tokenizer(caption).input_ids
        assert len(ids) <= tokenizer.model_max_length
        assert tokenizer.unk_token_id not in ids[1:-1]  # start ... end; the end token also stands for unknown
        assert tokenizer.decode(ids[1:-1]).replace(" ", "") == caption.replace(" ", "")


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


def test_a_seed_decides_the_picture(pipe, drawn):
    again = pipe(
        SHIPPED["seen"][0],
        num_inference_steps=12,
        guidance_scale=SHIPPED["guidance_scale"],
        generator=torch.Generator().manual_seed(SEEDS[0]),
        output_type="np",
    ).images[0]
    # a batch of one may sum in another order than a batch of eight; another seed differs by 0.05 and more
    assert np.abs(again - drawn.images[0]).mean() < 0.01


def test_safety_checker_passes_harmless_pictures_and_noise(pipe, drawn):
    assert sum(drawn.nsfw_content_detected) <= 1  # the card measures 2.3 % of harmless pictures flagged
    noise = np.random.default_rng(0).random((16, 64, 64, 3)).astype(np.float32)
    flat = np.broadcast_to(np.linspace(0, 1, 16, dtype=np.float32)[:, None, None, None], (16, 64, 64, 3)).copy()
    for pictures in (noise, flat):
        _, flagged = pipe.run_safety_checker(pictures, "cpu", torch.float32)
        assert flagged == [False] * 16


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


def test_mid_block_matters(pipe):
    """Zeroing the mid block's output changes the prediction by at least one percent."""
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(4, 4, 16, 16, generator=generator)
    with torch.no_grad():
        tokens = pipe.tokenizer(SHIPPED["seen"][:4], padding="max_length", return_tensors="pt").input_ids
        text = pipe.text_encoder(tokens)[0]
        before = pipe.unet(noisy, 900, encoder_hidden_states=text).sample
        handle = pipe.unet.mid_block.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        after = pipe.unet(noisy, 900, encoder_hidden_states=text).sample
        handle.remove()
    assert (after - before).norm() / before.norm() >= 0.01


def test_card_names_licences_limits_and_scorer():
    card = (ASSETS / "tiny-sd" / "README.md").read_text(encoding="utf-8")
    for words in (
        "MIT licence",
        "Apache License 2.0",
        "Fluent emoji",
        "Noto emoji",
        "tiny-sd's own CLIP, not OpenAI's",
        "## Limits",
    ):
        assert words in card, words
    assert (ASSETS / "tiny-sd" / "grid.png").stat().st_size < 1_500_000
    notices = (ASSETS / "LICENSES.md").read_text(encoding="utf-8")
    assert "Permission is hereby granted" in notices
