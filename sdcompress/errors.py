"""The errors sdcompress raises on purpose, each with the exit code the command line ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where.

    Args:
        field: dotted path of the field, such as `components.unet.0.cast.dtype`; empty where no field is to blame.
        message: what is wrong, and what to do.

    Examples:
        >>> str(Problem("dtype", "missing").inside("components.unet.0.cast"))
        'components.unet.0.cast.dtype: missing'
    """

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    def inside(self, path: str) -> Problem:
        """Return the problem with `path` before its field."""
        return Problem(".".join(part for part in (path, self.field) if part), self.message)


class SdcompressError(Exception):
    """Any failure sdcompress can explain; `exit_code` is what the process ends with."""

    exit_code = 3


class UserError(SdcompressError):
    """Something the user can fix: the message says what, where, and what to do.

    Args:
        problems: what is wrong; each is one line of the message. A plain text is a problem without a field.
        where: what the problems are in, such as a file; each line of the message begins with it.

    Attributes:
        problems: the problems as a tuple of `Problem`.
    """

    exit_code = 2

    def __init__(self, problems: str | Problem | Iterable[str | Problem], *, where: str = ""):
        listed = (problems,) if isinstance(problems, str | Problem) else problems
        self.problems = tuple(each if isinstance(each, Problem) else Problem("", each) for each in listed)
        super().__init__("\n".join(f"{where}: {each}" if where else str(each) for each in self.problems))


class ProblemList(list[Problem]):
    """Problems found so far, so that one error names them all.

    Examples:
        >>> problems = ProblemList()
        >>> with problems.collect("steps.0"):
        ...     raise UserError(Problem("dtype", "missing"))
        >>> [str(problem) for problem in problems]
        ['steps.0.dtype: missing']
    """

    def add(self, field: str, message: str) -> None:
        """Add one problem."""
        self.append(Problem(field, message))

    @contextmanager
    def collect(self, path: str = "") -> Iterator[None]:
        """Keep the problems of a UserError that is raised in the context, with `path` before their fields.

        A problem that is listed already is left out.
        """
        try:
            yield
        except UserError as error:
            found = (problem.inside(path) for problem in error.problems)
            self.extend(problem for problem in found if problem not in self)

    def raise_any(self, error: type[UserError] = UserError) -> None:
        """Raise one error with all problems, if there are any."""
        if self:
            raise error(self)


class RecipeError(UserError):
    """All that is wrong with a recipe; the fields are YAML paths."""


class SourceError(UserError):
    """A model that cannot be read: missing, truncated, of another kind, or out of reach."""


class ArtifactError(UserError):
    """An artifact folder that cannot be written, or that does not hold what its manifest says."""


class TrainingError(UserError):
    """A training run that failed; its last checkpoint can be continued with other settings."""


class EvaluationError(UserError):
    """An evaluation that cannot be run as asked, or whose child process died."""


class GateFailed(SdcompressError):
    """A measured value that misses a threshold the user set."""

    exit_code = 1


class InternalError(SdcompressError):
    """A promise sdcompress made to itself that did not hold: a bug worth reporting."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: a guess, if one is close, and the known names.

    Examples:
        >>> nearest("itn8", ["int8", "nf4"])
        'did you mean int8? known: int8, nf4'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}known: {', '.join(names)}"
