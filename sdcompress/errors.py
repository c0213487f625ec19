"""The errors sdcompress raises on purpose, each with the exit code the command line ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SdcompressError(Exception):
    """Any failure sdcompress can explain; `exit_code` is what the process ends with."""

    exit_code = 3


class UserError(SdcompressError):
    """Something the user can fix: the message says what, where, and what to do."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]):
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class RecipeError(UserError):
    """Everything wrong with a recipe at once, each line beginning with its YAML path."""


class SourceError(UserError):
    """A model that cannot be read: missing, truncated, of another kind, or out of reach."""


class ArtifactError(UserError):
    """An artifact folder that cannot be written, or that does not hold what its manifest says."""


class TrainingError(UserError):
    """A training run that went astray; what it kept so far can be continued with other settings."""


class EvaluationError(UserError):
    """An evaluation that cannot be run as asked, or whose child process died."""


class GateFailed(SdcompressError):
    """A measured value that misses a threshold the user set."""

    exit_code = 1


class InternalError(SdcompressError):
    """A promise sdcompress made to itself that did not hold: a bug worth reporting."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: a guess, if one is close, and the known names.

    Example:
        >>> nearest("itn8", ["int8", "nf4"])
        'did you mean int8? known: int8, nf4'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}known: {', '.join(names)}"
