"""Signal to quantization noise ratio of the predicted noise, timestep by timestep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def noise_sqnr_db(outputs: Sequence[tuple[np.ndarray, np.ndarray]], timesteps: Sequence[float]) -> dict[str, Any]:
    """Return 10 log10(signal power / error power) of the predicted noise at each timestep, over all pictures.

    Args:
        outputs: (original, compressed) predictions, of any shape.
        timesteps: of each pair.

    Returns:
        `timesteps`, the highest first; `values` in dB (None without any error, which `identical` counts); their `mean`.

    Source: the signal to quantization noise ratio of Lin et al. 2016, "Fixed Point Quantization of Deep Convolutional
    Networks" (arXiv:1511.06393), section 3.

    Examples:
        >>> ones = np.ones((1, 4))
        >>> round(noise_sqnr_db([(ones, 1.1 * ones)], [999.0])["mean"], 6)
        20.0
    """
    powers: dict[float, list[float]] = {}
    for (original, compressed), timestep in zip(outputs, timesteps, strict=True):
        signal, error = powers.setdefault(timestep, [0.0, 0.0])
        powers[timestep] = [signal + float((original**2).sum()), error + float(((original - compressed) ** 2).sum())]
    ordered = sorted(powers, reverse=True)
    values = [_decibels(*powers[timestep]) for timestep in ordered]
    finite = [value for value in values if value is not None]
    return {
        "timesteps": ordered,
        "values": values,
        "mean": sum(finite) / len(finite) if finite else None,
        "identical": len(values) - len(finite),
    }


def _decibels(signal: float, error: float) -> float | None:
    """Return None for no error at all. An output with NaN or infinity is all error: 0 dB."""
    if error == 0:
        return None
    if not math.isfinite(error):
        return 0.0
    return 10 * math.log10(max(signal, np.finfo(np.float64).tiny) / error)
