"""MS-SSIM, CLIP image similarity and CMMD against slow references, and LPIPS where its weights are missing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sdcompress.evaluation.metrics import lpips
from sdcompress.evaluation.metrics.clip_image import clip_image
from sdcompress.evaluation.metrics.clip_score import ClipScorer
from sdcompress.evaluation.metrics.cmmd import cmmd
from sdcompress.evaluation.metrics.ms_ssim import SMALLEST_SIDE, ms_ssim
from sdcompress.evaluation.metrics.psnr import psnr_db
from sdcompress.evaluation.metrics.scorer import TINY_SD_SCORER
from sdcompress.evaluation.metrics.ssim import ssim


def _pair(side: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    original = generator.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    noise = generator.normal(0, 25, original.shape)
    return original, (original + noise).clip(0, 255).astype(np.uint8)


def _blurred(image: np.ndarray) -> np.ndarray:
    """The Gaussian window of 11 pixels, sigma 1.5, over mirrored borders."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()
    padded = np.pad(image, 5, mode="reflect")
    rows = sum(tap * padded[place : place + image.shape[0]] for place, tap in enumerate(taps))
    return sum(tap * rows[:, place : place + image.shape[1]] for place, tap in enumerate(taps))


def _slow_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, mirrored at the borders."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        a, b = first[..., channel].astype(float), second[..., channel].astype(float)
        mean_a, mean_b = _blurred(a), _blurred(b)
        var_a, var_b, both = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2, _blurred(a * b) - mean_a * mean_b
        similarity = (
            (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        )
        values.append(similarity)
    return float(np.mean(values))


def _slow_ms_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Wang, Simoncelli and Bovik 2003, equation 7, on the mean over channels and places of each scale."""
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    result = 1.0
    x, y = first.astype(float), second.astype(float)
    for scale, weight in enumerate(weights):
        contrasts, whole = [], []
        for channel in range(3):
            a, b = x[..., channel], y[..., channel]
            mean_a, mean_b = _blurred(a), _blurred(b)
            var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
            contrast = (2 * (_blurred(a * b) - mean_a * mean_b) + c2) / (var_a + var_b + c2)
            # Only where the whole window lies in the picture.
            inside = (slice(5, -5), slice(5, -5))
            contrasts.append(contrast[inside])
            whole.append(((2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * contrast)[inside])
        result *= float(np.mean(whole if scale == 4 else contrasts)) ** weight
        if scale < 4:
            x, y = (image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2, 3).mean((1, 3)) for image in (x, y))
    return result


def test_psnr_and_ssim_are_their_definitions() -> None:
    pair = _pair(24)
    error = np.mean([(int(a) - int(b)) ** 2 for a, b in zip(pair[0].flat, pair[1].flat, strict=True)])
    # All in float64, so they agree far closer; a report prints no digit below 1e-4.
    assert psnr_db(*pair) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-4)
    assert ssim(*pair) == pytest.approx(_slow_ssim(*pair), abs=1e-4)
    assert psnr_db(pair[0], pair[0].copy()) == math.inf and ssim(pair[0], pair[0].copy()) == 1.0
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert psnr_db(black, white) == psnr_db(white, black) == pytest.approx(0, abs=1e-4)  # uint8 would wrap
    black[0, 0, 0] = 1
    assert psnr_db(black, np.zeros_like(black)) == pytest.approx(10 * math.log10(255**2 * black.size), abs=1e-4)


def test_ms_ssim_is_its_definition() -> None:
    first, second = _pair(192)
    value = ms_ssim(first, second)
    assert value is not None and 0.3 < value < 0.999
    assert value == pytest.approx(_slow_ms_ssim(first, second), abs=1e-9)  # both in float64
    assert ms_ssim(first, first) == 1.0


def test_ms_ssim_needs_room_for_five_scales() -> None:
    small, large = np.zeros((SMALLEST_SIDE - 1, 200, 3), np.uint8), np.zeros((SMALLEST_SIDE, 200, 3), np.uint8)
    assert ms_ssim(small, small + 1) is None
    assert ms_ssim(large, large + 9) is not None


def test_clip_image_is_the_cosine_of_plain_transformers() -> None:
    from transformers import CLIPModel

    pictures = list(_pair(64))
    scorer = ClipScorer(TINY_SD_SCORER)
    model = CLIPModel.from_pretrained(TINY_SD_SCORER).float().eval()
    pixels = scorer._processor(images=pictures, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    with torch.no_grad():  # step by step, without get_image_features
        pooled = model.vision_model(pixel_values=pixels).pooler_output
        projected = model.visual_projection(pooled).double().numpy()
    cosine = projected[0] @ projected[1] / np.linalg.norm(projected[0]) / np.linalg.norm(projected[1])
    embeddings = scorer.embed(pictures)
    assert clip_image(*embeddings) == pytest.approx(100 * cosine, abs=1e-4)  # float32, times 100
    assert clip_image(embeddings[0], embeddings[0]) == 100.0
    assert clip_image(embeddings[0], -embeddings[0]) == 0.0
    with torch.no_grad():
        tokens = scorer._tokenizer(["a red apple"], return_tensors="pt")
        text = model.text_projection(model.text_model(**tokens).pooler_output).double().numpy()[0]
    matches = [100 * picture @ text / np.linalg.norm(picture) / np.linalg.norm(text) for picture in projected]
    expected = [max(0.0, match) for match in matches]
    assert scorer.scores(pictures, "a red apple") == pytest.approx(expected, abs=1e-4)


def _slow_cmmd(first: np.ndarray, second: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return sum(math.exp(-sum((x - y) ** 2) / 200) for x in a for y in b) / len(a) / len(b)

    return 1000 * (kernel(first, first) + kernel(second, second) - 2 * kernel(first, second))


def test_cmmd_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0, 1, (9, 5)), generator.normal(0.5, 1, (7, 5))
    first, second = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (first, second))
    assert cmmd(first, second) == pytest.approx(_slow_cmmd(first, second), abs=1e-9)
    monkeypatch.setattr("sdcompress.evaluation.metrics.cmmd.BLOCK", 4)
    assert cmmd(first, second) == pytest.approx(_slow_cmmd(first, second), abs=1e-9)
    assert cmmd(first, first) == pytest.approx(0, abs=1e-9)
    assert cmmd(first, second) > 1  # 0.5 apart, where chance leaves about 1


def test_lpips_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lpips.importlib.util, "find_spec", lambda name: None)
    assert "sdcompress[lpips]" in (lpips.why_not() or "")
    monkeypatch.setattr(lpips.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert str(tmp_path / "checkpoints") in (lpips.why_not() or "")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / lpips.ALEXNET_FILE).touch()
    assert lpips.why_not() is None
