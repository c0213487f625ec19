"""PSNR and SSIM against slow references written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sdcompress.evaluation.metrics import psnr, ssim


def _pair(size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    original = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
    noise = generator.integers(-20, 21, original.shape)
    return original, (original + noise).clip(0, 255).astype(np.uint8)


def _slow_psnr(first: np.ndarray, second: np.ndarray) -> float:
    total = sum((int(a) - int(b)) ** 2 for a, b in zip(first.flat, second.flat, strict=True))
    return 10 * math.log10(255**2 / (total / first.size))


def _slow_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, window by window; the picture is mirrored at its borders."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        x, y = (np.pad(image[..., channel].astype(float), 5, mode="reflect") for image in (first, second))
        for row in range(x.shape[0] - 10):
            for column in range(x.shape[1] - 10):
                a, b = (image[row : row + 11, column : column + 11] for image in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
                both = (window * a * b).sum() - mean_a * mean_b
                values.append(
                    (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
                )
    return float(np.mean(values))


def test_psnr_equals_its_definition() -> None:
    pair = _pair()
    assert psnr.psnr_db(*pair) == pytest.approx(_slow_psnr(*pair), abs=1e-4)


def test_ssim_equals_its_definition() -> None:
    pair = _pair()
    assert ssim.ssim(*pair) == pytest.approx(_slow_ssim(*pair), abs=1e-4)


def test_uint8_differences_do_not_wrap() -> None:
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert psnr.psnr_db(black, white) == pytest.approx(0, abs=1e-4)
    assert psnr.psnr_db(white, black) == pytest.approx(0, abs=1e-4)


def test_identical_pictures() -> None:
    original, _ = _pair()
    assert psnr.psnr_db(original, original.copy()) == math.inf
    assert ssim.ssim(original, original.copy()) == 1.0


def test_one_pixel_off_by_one_is_not_identical() -> None:
    original, _ = _pair()
    other = original.copy()
    other[0, 0, 0] ^= 1
    assert psnr.psnr_db(original, other) == pytest.approx(10 * math.log10(255**2 * original.size), abs=1e-4)


def test_measurements_keep_every_sample() -> None:
    pairs = [_pair(), _pair(20)]
    for module, unit in ((psnr, "dB"), (ssim, "1")):
        measured = module.measure(pairs)
        assert (measured.subject, measured.unit, len(measured.samples)) == ("similarity", unit, 2)
