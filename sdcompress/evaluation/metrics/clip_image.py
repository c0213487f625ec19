"""CLIP image similarity: whether two pictures show the same things, whatever their pixels."""

from __future__ import annotations

import numpy as np

from sdcompress.evaluation.metrics.registry import PairMetric


def clip_image(original: np.ndarray, compressed: np.ndarray) -> float:
    """Return 100 times the cosine of two pictures' CLIP embeddings.

    Args:
        original: embedding of unit length, [dimensions].
        compressed: the same of the other picture.

    Returns:
        0 to 100, where 100 is the same to the CLIP model; a negative cosine is 0.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
    (arXiv:2103.00020), whose embeddings are compared by their cosine.

    Examples:
        >>> clip_image(np.array([1.0, 0.0]), np.array([0.6, 0.8]))
        60.0
    """
    if (original == compressed).all():
        return 100.0  # by definition; float32 lengths would leave 1e-5 of rounding
    return min(100.0, max(0.0, 100.0 * float(original.astype(np.float64) @ compressed.astype(np.float64))))


METRIC = PairMetric("clip_image", "CLIP image", "0..100", True, 2, open=lambda: clip_image, of="embeddings")
