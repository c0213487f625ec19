"""Structural similarity of two pictures: whether edges and textures stayed where they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PEAK = 255.0


def ssim(original: np.ndarray, compressed: np.ndarray) -> float:
    """Return the SSIM of two pictures, by a Gaussian window of 11 pixels with sigma 1.5.

    Args:
        original: uint8, [height, width, 3].
        compressed: the same.

    Returns:
        -1 to 1, where 1 is identical.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", equation 13.

    Examples:
        >>> import numpy as np
        >>> stripes = np.tile(np.array([0, 255], np.uint8), (16, 8))[..., None].repeat(3, axis=2)
        >>> ssim(stripes, stripes), ssim(stripes, 255 - stripes) < 0
        (1.0, True)
    """
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    if (original == compressed).all():
        return 1.0  # by definition; the convolutions would leave 1e-16 of rounding
    first, second = (
        torch.from_numpy(picture.astype("float64")).permute(2, 0, 1)[None]  # [1, 3, height, width]
        for picture in (original, compressed)
    )
    return float(structural_similarity_index_measure(second, first, data_range=PEAK))
