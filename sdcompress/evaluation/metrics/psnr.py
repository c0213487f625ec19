"""Peak signal-to-noise ratio of two pictures: how far the pixels moved.

Identical pictures have an infinite PSNR. JSON has no infinity, so files store `null` beside an `identical` flag or
count; inside Python it is `math.inf`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sdcompress.evaluation.metrics.measurement import Measurement

if TYPE_CHECKING:
    import numpy as np

PEAK = 255.0


def psnr_db(original: np.ndarray, compressed: np.ndarray) -> float:
    """Decibels between two uint8 pictures of one shape ([height, width, 3]), peak 255; inf when they are identical."""
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio

    if (original == compressed).all():
        return math.inf
    target = torch.from_numpy(original.astype("float64"))
    return float(peak_signal_noise_ratio(torch.from_numpy(compressed.astype("float64")), target, data_range=PEAK))


def measure(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Measurement:
    """PSNR in decibels of every (original, compressed) pair."""
    return Measurement("psnr", "similarity", "dB", tuple(psnr_db(*pair) for pair in pairs), higher_is_better=True)
