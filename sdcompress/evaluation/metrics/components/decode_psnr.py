"""PSNR of decoded pictures: what the VAE's decoder loses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdcompress.evaluation.metrics.psnr import psnr_db


def decode_psnr_db(outputs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Return the PSNR of decoded batches, as 8-bit pictures.

    Args:
        outputs: (original, compressed) batches, [pictures, 3, height, width] each, from -1 to 1.

    Returns:
        `values` in dB for each pair (None for identical ones, which `identical` counts), their `mean` and `min`.

    Examples:
        >>> grey = np.zeros((1, 3, 8, 8))
        >>> decode_psnr_db([(grey, grey + 4 / 255), (grey, grey)])["identical"]
        1
    """
    values = [psnr_db(_eight_bits(original), _eight_bits(compressed)) for original, compressed in outputs]
    finite = [value for value in values if math.isfinite(value)]
    return {
        "mean": sum(finite) / len(finite) if finite else None,
        "min": min(finite, default=None),
        "values": [value if math.isfinite(value) else None for value in values],
        "identical": len(values) - len(finite),
    }


def _eight_bits(decoded: np.ndarray) -> np.ndarray:
    pictures = np.nan_to_num(decoded / 2 + 0.5, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
    return (pictures * 255).round().astype(np.uint8)
