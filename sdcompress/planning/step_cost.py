"""What unpacking weights costs a denoising step in torch, as `benchmarks/torch_step.py` measured it.

That script writes `step_cost.json` beside this file, with the machine it was measured on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdcompress.quant.format import QuantFormat

FILE = Path(__file__).parent / "step_cost.json"
OPTIONS = ("rank", "hadamard")  # options that cost time; how scales are stored was measured to cost none
ROUNDED = " with 8-bit activations"
# Formats that are unpacked by the same operations, or by one operation less, as the one that was measured.
ALIKE = {f"int{bits}": f"uint{bits}" for bits in (2, 3, 5, 6)} | {"int8-unsaturated": "int8", "fp4": "nf4"}


def cost_note(layers: Iterable[tuple[QuantFormat, bool]]) -> str | None:
    """Return a line on the time of a step with layers like these; None without layers.

    Args:
        layers: format of each layer, and whether it rounds its inputs.
    """
    keys = sorted({cost_key(fmt, rounded) for fmt, rounded in layers})
    if not keys:
        return None
    measured = _measured()
    parts = []
    if told := [f"{key} {measured['ratios'][key]:.2f}x" for key in keys if key in measured["ratios"]]:
        parts.append(
            f"time of a step on a CPU against bfloat16's, were every layer so stored: {', '.join(told)} (Stable "
            f"Diffusion 1.5's UNet, {measured['machine']})"
        )
    if unknown := [key for key in keys if key not in measured["ratios"]]:
        parts.append(f"what it costs a step in time was not measured: {', '.join(unknown)}")
    return "; ".join(parts)


def cost_key(fmt: QuantFormat, rounded: bool) -> str:
    """Return the key in FILE of a format: one key for formats that cost the same."""
    options = [option for option in OPTIONS if getattr(fmt, option, 0)]
    return "+".join([ALIKE.get(fmt.name, fmt.name), *options]) + (ROUNDED if rounded else "")


@cache
def _measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found
