"""What evaluate.py measures with: pictures from the pipeline, the scorer's retrieval, pixel distance, rounding."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPModel, CLIPTokenizerFast

from benchmarks.tiny_sd import bpe
from benchmarks.tiny_sd.concepts import DRAWN_SUBJECTS
from benchmarks.tiny_sd.data import Combination, Emoji
from benchmarks.tiny_sd.train_clip import embeddings, pixels


def open_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The shipped pipeline in float32, without progress bars and without its safety checker."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(
    pipe: StableDiffusionPipeline,
    captions: list[str],
    steps: int,
    guidance: float,
    first_seed: int = 0,
    batch: int = 16,
) -> np.ndarray:
    """One picture per caption, float32 [n, 64, 64, 3] in 0..1; caption i has seed first_seed + i."""
    pictures = []
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        seeds = range(first_seed + start, first_seed + start + len(part))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        result = pipe(
            part, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
        ).images
        pictures.append(np.round(result * 255) / 255)  # as saved to a file
        print(f"\rgenerated {start + len(part)}/{len(captions)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return np.concatenate(pictures).astype(np.float32)


def thumbnails(pictures: np.ndarray, side: int = 8) -> np.ndarray:
    """The pictures reduced to side x side pixels and enlarged again: colours and rough layout, no shapes."""
    result = []
    for picture in pictures:
        image = Image.fromarray((picture * 255).round().astype(np.uint8))
        small = image.resize((side, side), Image.Resampling.BOX)
        result.append(np.asarray(small.resize(image.size, Image.Resampling.BICUBIC), np.float32) / 255)
    return np.stack(result)


class Scorer:
    """tiny-sd's own CLIP, trained apart from the pipeline's."""

    def __init__(self, folder: Path) -> None:
        self.model = CLIPModel.from_pretrained(folder).float().eval()
        self.tokenizer = CLIPTokenizerFast.from_pretrained(folder)

    @torch.no_grad()
    def similarity(self, captions: list[str], pictures: np.ndarray) -> torch.Tensor:
        """Cosines, [pictures, captions]."""
        text, picture = embeddings(self.model, bpe.encode(self.tokenizer, captions), pixels(pictures))
        return picture @ text.T

    def scores(self, captions: list[str], pictures: np.ndarray) -> np.ndarray:
        """CLIP score (100 x cosine) of every picture with its own caption."""
        return 100 * self.similarity(captions, pictures).diagonal().numpy()

    def top1(self, captions: list[str], pictures: np.ndarray) -> float:
        """Share of the pictures whose own caption is the nearest of all."""
        nearest = self.similarity(captions, pictures).argmax(1)
        return float((nearest == torch.arange(len(captions))).float().mean())

    def object_top1(self, combinations: list[Combination], pictures: np.ndarray) -> float:
        """The same among the captions of all drawn subjects in the picture's own layout and colour."""
        right = 0
        cells = sorted({(combination.layout, combination.background) for combination in combinations})
        for cell in cells:
            rivals = [Combination(style, name, *cell) for style, name in DRAWN_SUBJECTS]
            here = [i for i, one in enumerate(combinations) if (one.layout, one.background) == cell]
            nearest = self.similarity([rival.caption for rival in rivals], pictures[here]).argmax(1)
            right += sum(rivals[n] == combinations[i] for n, i in zip(nearest.tolist(), here, strict=True))
        return right / len(combinations)


def pixel_top1(emoji: Emoji, combinations: list[Combination], pictures: np.ndarray) -> float:
    """Share of the pictures whose nearest real picture of the same layout and colour (L2) shows the right subject."""
    right = 0
    for combination, picture in zip(combinations, pictures, strict=True):
        rivals = [
            Combination(style, name, combination.layout, combination.background) for style, name in DRAWN_SUBJECTS
        ]
        distances = [float(np.square(emoji.render(rival) - picture).sum()) for rival in rivals]
        right += rivals[int(np.argmin(distances))] == combination
    return right / len(combinations)


def psnr_db(pictures: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of every picture in dB (at most 100)."""
    error = np.square(pictures - reference).mean(axis=(1, 2, 3))
    return -10 * np.log10(np.maximum(error, 1e-10))


def interval(differences: np.ndarray, draws: int = 2000) -> list[float]:
    """95 % bootstrap interval of the mean of paired differences."""
    rng = np.random.default_rng(0)
    means = differences[rng.integers(len(differences), size=(draws, len(differences)))].mean(axis=1)
    return [float(value) for value in np.quantile(means, (0.025, 0.975))]


@contextmanager
def rounded(unet: torch.nn.Module, bits: int) -> Iterator[None]:
    """All Conv2d and Linear weights rounded to the nearest of a symmetric grid per output channel."""
    limit = 2 ** (bits - 1) - 1
    kept = {}
    with torch.no_grad():
        for name, module in unet.named_modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                kept[name] = module.weight.detach().clone()
                flat = module.weight.flatten(1)  # [out, in*kh*kw]
                scale = flat.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / limit
                module.weight.copy_(((flat / scale).round().clamp(-limit, limit) * scale).view_as(module.weight))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                unet.get_submodule(name).weight.copy_(weight)
