"""Patterns of module names, as recipes have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def matches(pattern: str, module: str) -> bool:
    """Return whether the pattern, which may contain `*`, matches the module's name or that of a module around it.

    Examples:
        >>> matches("down_blocks.*.attentions", "down_blocks.0.attentions.1.proj_in")
        True
    """
    return fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")


def first_match(patterns: Iterable[str], module: str) -> str | None:
    """Return the first pattern that matches the module; None if none does."""
    return next((pattern for pattern in patterns if matches(pattern, module)), None)


def unmatched(patterns: Sequence[str], modules: Sequence[str]) -> list[str]:
    """Return the patterns that match none of the modules."""
    return [pattern for pattern in patterns if not any(matches(pattern, module) for module in modules)]
