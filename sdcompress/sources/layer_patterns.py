"""Patterns of module names, as recipes write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def matches(pattern: str, module: str) -> bool:
    """Whether `pattern` (with `*`) is the module's full name, or the name of a module it lies in."""
    return fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*")


def first_match(patterns: Iterable[str], module: str) -> str | None:
    """The first pattern that takes the module in."""
    return next((pattern for pattern in patterns if matches(pattern, module)), None)


def unmatched(patterns: Sequence[str], modules: Sequence[str]) -> list[str]:
    """The patterns that take in none of the modules."""
    return [pattern for pattern in patterns if not any(matches(pattern, module) for module in modules)]
