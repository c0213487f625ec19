"""Signal to quantization noise ratio of the predicted noise, timestep by timestep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def noise_sqnr_db(outputs: Sequence[tuple[np.ndarray, np.ndarray]], timesteps: Sequence[float]) -> dict[str, Any]:
    """10 log10(signal power / error power) at each timestep, the highest first, over all pictures; their mean."""
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
    """None for no error at all. An output with NaN or infinity is all error: 0 dB."""
    if error == 0:
        return None
    if not math.isfinite(error):
        return 0.0
    return 10 * math.log10(max(signal, np.finfo(np.float64).tiny) / error)
