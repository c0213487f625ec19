"""What a search is to reach: limits on size, time, memory and quality, of which one is the objective."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdcompress.errors import UserError
from sdcompress.planning.gates import Gate, parse_gate

_UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NUMBER = r"(\d+\.?\d*|\.\d+)"
_RATIO = re.compile(rf"\s*{_NUMBER}\s*x\s*", re.IGNORECASE)
_BYTES = re.compile(rf"\s*{_NUMBER}\s*({'|'.join(_UNITS)})\s*", re.IGNORECASE)
_SECONDS = re.compile(rf"\s*{_NUMBER}\s*(ms|s)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Limit:
    """An upper limit: a ratio to the original, or an amount in bytes or seconds.

    Args:
        text: the limit as the user wrote it.
        ratio: to the original's figure; None where `amount` is given.
        amount: in bytes or seconds; None where `ratio` is given.
    """

    text: str
    ratio: float | None = None
    amount: float | None = None

    def of(self, original: float) -> float:
        """Return the limit as an amount, given the original's."""
        return self.amount if self.ratio is None else self.ratio * original  # type: ignore[return-value]


def parse_size(text: str, option: str = "--size") -> Limit:
    """Return the limit that a text such as `0.3x`, `700MB` or `1.5GiB` stands for.

    Raises:
        UserError: the text has another form, or names nothing.

    Examples:
        >>> parse_size("700MB").amount, parse_size("0.3x").ratio
        (700000000.0, 0.3)
    """
    return _parse(text, option, _BYTES, lambda unit: _UNITS[unit.upper()], "0.3x, 700MB or 1.5GiB")


def parse_time(text: str, option: str = "--time") -> Limit:
    """Return the limit that a text such as `0.5x`, `4s` or `800ms` stands for. UserError for another form.

    Examples:
        >>> parse_time("800ms").amount
        0.8
    """
    return _parse(text, option, _SECONDS, lambda unit: 1.0 if unit.lower() == "s" else 1e-3, "0.5x, 4s or 800ms")


def _parse(text: str, option: str, amounts: re.Pattern[str], unit_of: object, examples: str) -> Limit:
    if found := _RATIO.fullmatch(text):
        limit = Limit(text.strip(), ratio=float(found[1]))
    elif found := amounts.fullmatch(text):
        limit = Limit(text.strip(), amount=float(found[1]) * unit_of(found[2]))  # type: ignore[operator]
    else:
        raise UserError(f"{option} {text}: must be like {examples}")
    if not (limit.ratio or limit.amount):
        raise UserError(f"{option} {text}: nothing fits into nothing; name a positive limit such as {examples}")
    return limit


@dataclass(frozen=True)
class Target:
    """What a search is to reach. At least one of the limits is given.

    Args:
        size: of the weights of the whole pipeline.
        time: of one picture on this machine.
        memory: the peak while drawing.
        quality: what the paired evaluation must show, such as `psnr_db>=38`.
    """

    size: Limit | None = None
    time: Limit | None = None
    memory: Limit | None = None
    quality: Gate | None = None

    @property
    def objective(self) -> str:
        """What is made as good as the limits allow: `quality`, or `size` where only the quality is given."""
        return "size" if self.quality is not None and self.size is None and self.time is None else "quality"


def parse_target(
    size: str | None = None, time: str | None = None, memory: str | None = None, quality: str | None = None
) -> Target:
    """Return the target that these texts stand for.

    Raises:
        UserError: a text has a wrong form, or nothing is given.

    Examples:
        >>> parse_target(quality="psnr_db>=38").objective
        'size'
    """
    if size is None and time is None and memory is None and quality is None:
        raise UserError("name a target: --size 0.3x, --time 0.5x, --memory 4GB or --quality 'psnr_db>=38'")
    return Target(
        None if size is None else parse_size(size),
        None if time is None else parse_time(time),
        None if memory is None else parse_size(memory, "--memory"),
        None if quality is None else parse_gate(quality),
    )
