"""What a diffusers tensor is in a file of another layout: a tensor there, or some rows of it, perhaps rearranged."""

from __future__ import annotations

from dataclasses import dataclass

from sdcompress.files.safetensors_file import Arrangement


@dataclass(frozen=True)
class Piece:
    """Rows `first`/`of` to `last`/`of` of the tensor called `name`, which lacks the component's prefix."""

    name: str
    first: int = 0
    last: int = 1
    of: int = 1
    arrangement: Arrangement = "plain"
