"""CMMD: the distance of two sets of pictures, by their CLIP embeddings.

Source: Jayasumana et al. 2024, "Rethinking FID: Towards a Better Evaluation Metric for Image Generation"
(arXiv:2401.09603). The squared maximum mean discrepancy with a Gaussian kernel (sigma 10), times 1000, estimated with
self-pairs included: a set has distance 0 from itself, and a small set's distance is larger than a large one's would be.
So compare values over equally many pictures. The paper's CLIP model is ViT-L/14 at 336 pixels; with another, the values
are not those of the literature.
"""

from __future__ import annotations

import numpy as np

SIGMA = 10.0
SCALE = 1000.0
BLOCK = 2048


def cmmd(original: np.ndarray, compressed: np.ndarray) -> float:
    """Return the distance of two sets of pictures.

    Args:
        original: embeddings of unit length, [pictures, dimensions].
        compressed: the same of the other set, which may have another number of pictures.

    Returns:
        0 or more, where 0 is the same set.

    Examples:
        >>> first = np.eye(4)[:2]
        >>> round(cmmd(first, np.eye(4)[2:]), 3), cmmd(first, first)
        (9.95, 0.0)
    """
    first, second = original.astype(np.float64), compressed.astype(np.float64)
    distance = _mean_kernel(first, first) + _mean_kernel(second, second) - 2 * _mean_kernel(first, second)
    return max(0.0, SCALE * distance)  # it is a squared norm; rounding may leave -1e-13


def _mean_kernel(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean over all pairs of exp(-|a - b|^2 / (2 sigma^2)), block by block."""
    total = 0.0
    for start in range(0, len(first), BLOCK):
        rows = first[start : start + BLOCK]
        squares = (rows**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * rows @ second.T  # [rows, second]
        total += float(np.exp(-squares / (2 * SIGMA**2)).sum())
    return total / (len(first) * len(second))
