"""Shares as recipes write them: 30% or 0.3."""

from __future__ import annotations

from typing import Any


def parse_share(value: Any) -> Any:
    """The share as a fraction if it is a string with a percent sign; anything else as it is, for pydantic to judge."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value
