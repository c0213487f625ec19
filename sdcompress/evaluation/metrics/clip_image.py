"""CLIP image similarity: whether two pictures show the same things, whatever their pixels."""

from __future__ import annotations

import numpy as np


def clip_image(original: np.ndarray, compressed: np.ndarray) -> float:
    """100 x cosine of two pictures' CLIP embeddings of unit length (100 = the same to the scorer), floored at 0."""
    if (original == compressed).all():
        return 100.0  # by definition; float32 lengths would leave 1e-5 of rounding
    return min(100.0, max(0.0, 100.0 * float(original.astype(np.float64) @ compressed.astype(np.float64))))
