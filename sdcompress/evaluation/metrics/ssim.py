"""Structural similarity of two pictures (Wang et al. 2004): whether edges and textures stayed where they were."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sdcompress.evaluation.metrics.measurement import Measurement

if TYPE_CHECKING:
    import numpy as np

PEAK = 255.0


def ssim(original: np.ndarray, compressed: np.ndarray) -> float:
    """SSIM (1 = identical) of two uint8 pictures [height, width, 3]; Gaussian window of 11 pixels, sigma 1.5."""
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    if (original == compressed).all():
        return 1.0  # by definition; the convolutions would leave 1e-16 of rounding
    first, second = (
        torch.from_numpy(picture.astype("float64")).permute(2, 0, 1)[None]  # [1, 3, height, width]
        for picture in (original, compressed)
    )
    return float(structural_similarity_index_measure(second, first, data_range=PEAK))


def measure(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Measurement:
    """SSIM of every (original, compressed) pair."""
    return Measurement("ssim", "similarity", "1", tuple(ssim(*pair) for pair in pairs), higher_is_better=True)
