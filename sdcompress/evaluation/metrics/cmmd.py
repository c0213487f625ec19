"""CMMD: how far two sets of pictures lie apart (Jayasumana et al. 2024, arXiv:2401.09603), on the scorer's embeddings.

The squared maximum mean discrepancy with a Gaussian kernel (sigma 10) of CLIP embeddings of unit length, times 1000,
estimated with self-pairs included: a set has distance 0 from itself, and a small set's distance is larger than a large
one's would be. So compare values over equally many pictures. The paper's scorer is ViT-L/14 at 336 pixels; with another
scorer the values are not those of the literature.
"""

from __future__ import annotations

import numpy as np

SIGMA = 10.0
SCALE = 1000.0
BLOCK = 2048


def cmmd(original: np.ndarray, compressed: np.ndarray) -> float:
    """The distance (0 = the same set) of two sets of embeddings [pictures, dimensions] of unit length."""
    first, second = original.astype(np.float64), compressed.astype(np.float64)
    distance = _mean_kernel(first, first) + _mean_kernel(second, second) - 2 * _mean_kernel(first, second)
    return max(0.0, SCALE * distance)  # it is a squared norm; rounding may leave -1e-13


def _mean_kernel(first: np.ndarray, second: np.ndarray) -> float:
    """The mean over all pairs of exp(-|a - b|^2 / (2 sigma^2)), block by block."""
    total = 0.0
    for start in range(0, len(first), BLOCK):
        rows = first[start : start + BLOCK]
        squares = (rows**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * rows @ second.T  # [rows, second]
        total += float(np.exp(-squares / (2 * SIGMA**2)).sum())
    return total / (len(first) * len(second))
