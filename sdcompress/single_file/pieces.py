"""What a diffusers tensor is in a file of another layout: a tensor there, or some rows of it, perhaps rearranged."""

from __future__ import annotations

from dataclasses import dataclass

from sdcompress.safetensors_file import Arrangement


@dataclass(frozen=True)
class Piece:
    """The tensor called `name` (without the component's prefix), of which rows `first`/`of` to `last`/`of` are meant."""

    name: str
    first: int = 0
    last: int = 1
    of: int = 1
    arrangement: Arrangement = "plain"
