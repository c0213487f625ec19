"""SSIM at five scales.

Source: Wang, Simoncelli and Bovik 2003, "Multiscale structural similarity for image quality assessment", equation 7.
Each scale counts where its whole window lies in the picture, as in the paper's own implementation. torchmetrics'
function of this name takes the coarsest scale with mirrored borders too, which there are most of the picture (a picture
of 176 pixels has 11 left): on pictures of tiny-sd that is 0.01 off. So its maps are put together here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdcompress.evaluation.metrics.registry import PairMetric

if TYPE_CHECKING:
    import numpy as np

PEAK = 255.0
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, the finest first: the paper's section 3.2
BORDER = 5  # of the window of 11 pixels
# The picture is halved four times, and the window must still fit.
SMALLEST_SIDE = (2 * BORDER + 1) * 2 ** (len(WEIGHTS) - 1)


def ms_ssim(original: np.ndarray, compressed: np.ndarray) -> float | None:
    """Return the similarity of two pictures.

    Args:
        original: uint8, [height, width, 3].
        compressed: the same.

    Returns:
        0 to 1, where 1 is identical; None for a side under SMALLEST_SIDE pixels.

    Examples:
        >>> import numpy as np
        >>> grey = np.full((176, 176, 3), 128, np.uint8)
        >>> ms_ssim(grey, grey), ms_ssim(grey[:64], grey[:64])
        (1.0, None)
    """
    import torch
    from torch.nn.functional import avg_pool2d
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(original.shape[:2]) < SMALLEST_SIDE:
        return None
    if (original == compressed).all():
        return 1.0  # by definition, as in ssim
    first, second = (
        torch.from_numpy(picture.astype("float64")).permute(2, 0, 1)[None]  # [1, 3, height, width]
        for picture in (original, compressed)
    )
    similarity = 1.0
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            first, second = avg_pool2d(first, 2), avg_pool2d(second, 2)
        last = scale == len(WEIGHTS) - 1
        _, measured = structural_similarity_index_measure(
            second, first, data_range=PEAK, return_full_image=last, return_contrast_sensitivity=not last
        )
        if last:  # the whole map; contrast comes without its border, and averaged
            measured = measured[..., BORDER:-BORDER, BORDER:-BORDER]
        # Contrast may be negative between unlike pictures, and a power of it is no number: those count as 0.
        similarity *= max(0.0, float(measured.mean())) ** weight
    return similarity


METRIC = PairMetric("ms_ssim", "MS-SSIM", "1", True, 3, open=lambda: ms_ssim)
