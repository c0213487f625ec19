"""Peak signal-to-noise ratio of two pictures: how far the pixels moved.

JSON has no infinity, so files store the infinite PSNR of identical pictures as `null` beside `identical`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PEAK = 255.0


def psnr_db(original: np.ndarray, compressed: np.ndarray) -> float:
    """Return the PSNR of two pictures in decibels: 10 log10(255^2 / mean squared error).

    Args:
        original: uint8, of any shape, such as [height, width, 3].
        compressed: the same.

    Returns:
        0 or more; infinity for identical pictures.

    Source: Huynh-Thu and Ghanbari 2008, "Scope of validity of PSNR in image/video quality assessment".

    Examples:
        >>> import numpy as np
        >>> grey = np.full((8, 8, 3), 128, np.uint8)
        >>> round(psnr_db(grey, grey + 1), 2), psnr_db(grey, grey)
        (48.13, inf)
    """
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio

    if (original == compressed).all():
        return math.inf
    target = torch.from_numpy(original.astype("float64"))
    return float(peak_signal_noise_ratio(torch.from_numpy(compressed.astype("float64")), target, data_range=PEAK))
