"""What a search is to reach: a limit on the size, on the quality, or both."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdcompress.errors import UserError
from sdcompress.planning.gates import Gate, parse_gate

_UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NUMBER = r"(\d+\.?\d*|\.\d+)"
_RATIO = re.compile(rf"\s*{_NUMBER}\s*x\s*", re.IGNORECASE)
_BYTES = re.compile(rf"\s*{_NUMBER}\s*({'|'.join(_UNITS)})\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Limit:
    """An upper limit: a ratio to the original, or an amount in bytes.

    Args:
        text: the limit as the user wrote it.
        ratio: to the original's figure; None where `amount` is given.
        amount: in bytes; None where `ratio` is given.
    """

    text: str
    ratio: float | None = None
    amount: float | None = None

    def of(self, original: float) -> float:
        """Return the limit as an amount, given the original's."""
        return self.amount if self.ratio is None else self.ratio * original  # type: ignore[return-value]


def parse_size(text: str) -> Limit:
    """Return the limit that a text such as `0.3x`, `700MB` or `1.5GiB` stands for.

    Raises:
        UserError: the text has another form, or names nothing.

    Examples:
        >>> parse_size("700MB").amount, parse_size("0.3x").ratio
        (700000000.0, 0.3)
    """
    examples = "0.3x, 700MB or 1.5GiB"
    if found := _RATIO.fullmatch(text):
        limit = Limit(text.strip(), ratio=float(found[1]))
    elif found := _BYTES.fullmatch(text):
        limit = Limit(text.strip(), amount=float(found[1]) * _UNITS[found[2].upper()])
    else:
        raise UserError(f"--size {text}: must be like {examples}")
    if not (limit.ratio or limit.amount):
        raise UserError(f"--size {text}: nothing fits into nothing; name a positive limit such as {examples}")
    return limit


@dataclass(frozen=True)
class Target:
    """What a search is to reach. At least one of the limits is given.

    Args:
        size: of the weights of the whole pipeline.
        quality: what the paired evaluation must show, such as `psnr_db>=38`.
    """

    size: Limit | None = None
    quality: Gate | None = None

    @property
    def objective(self) -> str:
        """What is made as good as the limits allow: `quality`, or `size` where only the quality is given."""
        return "size" if self.size is None else "quality"


def parse_target(size: str | None = None, quality: str | None = None) -> Target:
    """Return the target that these texts stand for.

    Raises:
        UserError: a text has a wrong form, or nothing is given.

    Examples:
        >>> parse_target(quality="psnr_db>=38").objective
        'size'
    """
    if size is None and quality is None:
        raise UserError("name a target: --size 0.3x or --quality 'psnr_db>=38'")
    return Target(None if size is None else parse_size(size), None if quality is None else parse_gate(quality))
