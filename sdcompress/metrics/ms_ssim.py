"""SSIM at five scales (Wang, Simoncelli and Bovik 2003, "Multiscale structural similarity")."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PEAK = 255.0
# The picture is halved four times, and the window of 11 pixels must still fit (torchmetrics: side // 16 > 10).
SMALLEST_SIDE = 11 * 2**4


def ms_ssim(original: np.ndarray, compressed: np.ndarray) -> float | None:
    """MS-SSIM (1 = identical) of two uint8 pictures [height, width, 3]; None for a side under SMALLEST_SIDE pixels."""
    import torch
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    if min(original.shape[:2]) < SMALLEST_SIDE:
        return None
    if (original == compressed).all():
        return 1.0  # by definition, as in ssim
    first, second = (
        torch.from_numpy(picture.astype("float64")).permute(2, 0, 1)[None]  # [1, 3, height, width]
        for picture in (original, compressed)
    )
    # Contrast may be negative between unlike pictures, and a power of it is no number: those count as 0.
    value = multiscale_structural_similarity_index_measure(second, first, data_range=PEAK, normalize="relu")
    return float(value)
