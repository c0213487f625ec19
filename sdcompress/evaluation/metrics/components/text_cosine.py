"""Cosine of text embeddings: whether the prompt still means the same to the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def text_cosine(outputs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Return the cosine of the two embeddings of each token, averaged over the tokens of a call.

    Args:
        outputs: (original, compressed) embeddings, [..., tokens, dimensions] each, one pair for each call.

    Returns:
        `values` from -1 to 1 for each call, where 1 is the same direction; their `mean` and `min`.

    Examples:
        >>> text_cosine([(np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]]))])["mean"]
        0.6
    """
    values = [_cosine(original, compressed) for original, compressed in outputs]
    return {"mean": float(np.mean(values)), "min": float(min(values)), "values": values}


def _cosine(original: np.ndarray, compressed: np.ndarray) -> float:
    products = (original * compressed).sum(axis=-1)  # [..., tokens]
    lengths = np.linalg.norm(original, axis=-1) * np.linalg.norm(compressed, axis=-1)
    return float(np.mean(np.clip(products / np.maximum(lengths, np.finfo(np.float64).tiny), -1, 1)))
