"""Pictures as data URIs for a self-contained page, encoded so that all of them together fit a number of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdcompress.evaluation.samples import SIDES
from sdcompress.report.quality_model import Sample

MOST_PAIRS = 200
MOST_BYTES = 10_000_000  # of all pictures, 13.3 MB once written as base64
TRIED = 6  # pairs that are encoded to choose how all are


@dataclass(frozen=True)
class Encoding:
    """How pictures are written: WebP, lossless (`quality` None) or of a quality, at most `longest_side` pixels."""

    quality: int | None
    longest_side: int

    def __str__(self) -> str:
        how = "without loss" if self.quality is None else f"at quality {self.quality}"
        return f"WebP {how}, at most {self.longest_side} pixels a side"


ENCODINGS = (
    Encoding(None, 1024),
    Encoding(90, 1024),
    Encoding(85, 768),
    Encoding(80, 512),
    Encoding(70, 512),
    Encoding(60, 512),
    Encoding(70, 384),
    Encoding(60, 320),
    Encoding(50, 256),
    Encoding(40, 192),
    Encoding(30, 128),
)


def embed_pairs(
    samples: Sequence[Sample], folder: Path, most_bytes: int = MOST_BYTES
) -> tuple[dict[int, dict[str, str]], Encoding | None]:
    """Return index -> side -> data URI, of the first 200 samples with pictures in `folder`, and their encoding."""
    files = {
        sample.index: {side: folder / sample.side(side).picture for side in SIDES} for sample in samples[:MOST_PAIRS]
    }
    files = {index: pair for index, pair in files.items() if all(file.is_file() for file in pair.values())}
    if not files:
        return {}, None
    indices = sorted(files)
    tried = [indices[place * len(indices) // min(TRIED, len(indices))] for place in range(min(TRIED, len(indices)))]
    for encoding in ENCODINGS:
        probe = sum(len(encode(file, encoding)) for index in tried for file in files[index].values())
        if probe / len(tried) * len(files) > most_bytes and encoding is not ENCODINGS[-1]:
            continue
        pictures = {i: {side: encode(file, encoding) for side, file in pair.items()} for i, pair in files.items()}
        if sum(len(data) for pair in pictures.values() for data in pair.values()) <= most_bytes:
            break
    return {i: {side: _uri(data) for side, data in pair.items()} for i, pair in pictures.items()}, encoding


def encode(file: Path, encoding: Encoding) -> bytes:
    """Return the picture as WebP."""
    from PIL import Image

    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    if max(picture.size) > encoding.longest_side:
        picture.thumbnail((encoding.longest_side, encoding.longest_side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    lossless = encoding.quality is None
    picture.save(stream, "WEBP", lossless=lossless, quality=encoding.quality or 50, method=2)
    return stream.getvalue()


def _uri(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode("ascii")
