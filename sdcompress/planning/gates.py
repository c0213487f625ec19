"""Gates: thresholds on the figures of a report, such as `clip_score_drift>=-0.3`, that a build passes or fails."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from sdcompress.errors import UserError, nearest

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_GATE = re.compile(r"\s*([A-Za-z_0-9]+)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
# Name of a figure -> the keys that lead to it in a report.
FIGURES: dict[str, tuple[str, ...]] = {
    "clip_score": ("compressed", "clip_score"),
    "clip_score_drift": ("change", "clip_score", "difference"),
    "psnr_db": ("similarity", "psnr_db", "mean"),
    "psnr_db_min": ("similarity", "psnr_db", "min"),
    "ssim": ("similarity", "ssim", "mean"),
    "ssim_min": ("similarity", "ssim", "min"),
    "clip_image": ("metrics", "clip_image", "mean"),
    "ms_ssim": ("metrics", "ms_ssim", "mean"),
    "lpips": ("metrics", "lpips", "mean"),
    "cmmd": ("set_metrics", "cmmd", "value"),
    "fid": ("set_metrics", "fid", "value"),
    "size_bytes": ("compressed", "size_bytes"),
    "size_ratio": ("change", "size_bytes", "ratio"),
    "parameters_ratio": ("change", "parameters", "ratio"),
    "bits_per_weight": ("compressed", "bits_per_weight"),
    "resident_weights_ratio": ("change", "resident_weights_bytes", "ratio"),
    "peak_memory_bytes": ("compressed", "peak_memory_bytes"),
    "peak_memory_ratio": ("change", "peak_memory_bytes", "ratio"),
    "peak_device_memory_ratio": ("change", "peak_device_memory_bytes", "ratio"),
    "load_ratio": ("change", "load_s", "ratio"),
    "latency_s": ("compressed", "latency_s"),
    "latency_ratio": ("change", "latency_s", "ratio"),
    "blocked": ("compressed", "blocked"),
    "flat": ("compressed", "flat"),
    "not_finite": ("compressed", "not_finite"),
    "safety_agreement": ("component_metrics", "safety_checker", "agreement"),
}


@dataclass(frozen=True)
class Gate:
    """A threshold on one figure.

    Args:
        name: the figure, one of FIGURES.
        comparison: `>=`, `<=`, `>` or `<`.
        text: the gate as a recipe writes it.
    """

    name: str
    comparison: str
    limit: float
    text: str

    def passes(self, value: float) -> bool:
        """Return whether the figure passes."""
        return _COMPARE[self.comparison](value, self.limit)


def parse_gate(text: str) -> Gate:
    """Return the gate that a text stands for.

    Raises:
        UserError: the text has another form, or there is no such figure.

    Examples:
        >>> parse_gate("psnr_db >= 30").text
        'psnr_db>=30'
    """
    found = _GATE.fullmatch(text)
    if found is None:
        raise UserError(f"gate {text!r}: must be NAME>=NUMBER (or <=, >, <), such as 'clip_score_drift>=-0.3'")
    name, comparison, limit = found.groups()
    if name not in FIGURES:
        raise UserError(f"gate {text!r}: no figure {name!r}; {nearest(name, FIGURES)}")
    return Gate(name, comparison, float(limit), f"{name}{comparison}{limit}")
