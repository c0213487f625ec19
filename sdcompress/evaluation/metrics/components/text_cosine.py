"""Cosine of text embeddings: whether the prompt still means the same to the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def text_cosine(outputs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Per call the mean over its tokens of the cosine between both embeddings; over calls their mean and minimum."""
    values = [_cosine(original, compressed) for original, compressed in outputs]
    return {"mean": float(np.mean(values)), "min": float(min(values)), "values": values}


def _cosine(original: np.ndarray, compressed: np.ndarray) -> float:
    products = (original * compressed).sum(axis=-1)  # [..., tokens]
    lengths = np.linalg.norm(original, axis=-1) * np.linalg.norm(compressed, axis=-1)
    return float(np.mean(np.clip(products / np.maximum(lengths, np.finfo(np.float64).tiny), -1, 1)))
