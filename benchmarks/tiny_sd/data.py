"""Captions and 64x64 pictures: subject x layout x background, and which combinations are kept out of training."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.tiny_sd.concepts import DRAWN_SUBJECTS, SOURCE_NAMES, STYLES, SUBJECTS, WEAPON_NAMES, plural

DEFAULT_WORK = Path(__file__).resolve().parents[2] / ".cache" / "tiny_sd"
SIZE_PX = 64

BACKGROUNDS = {
    "white": (250, 250, 250),
    "black": (26, 26, 30),
    "grey": (142, 144, 150),
    "pink": (248, 182, 204),
    "yellow": (250, 222, 118),
    "green": (136, 204, 146),
    "blue": (112, 164, 236),
    "purple": (160, 122, 212),
}

# name -> (centre x, centre y, size) of every copy, in pixels
LAYOUTS = {
    "plain": ((32, 32, 46),),
    "large": ((32, 32, 60),),
    "left": ((17, 32, 32),),
    "right": ((47, 32, 32),),
    "top": ((32, 17, 32),),
    "bottom": ((32, 47, 32),),
    "two": ((16.5, 32, 30), (47.5, 32, 30)),
    "three": ((32, 17, 29), (16.5, 47, 29), (47.5, 47, 29)),
}
# The UNet's layouts. Everything sits on multiples of four pixels, the latents' grid, and `two` is `left` and `right`
# together, so that a small picture is learnt once and moved by whole latents.
DRAWN_LAYOUTS = {
    "plain": ((32, 32, 48),),
    "left": ((16, 32, 32),),
    "right": ((48, 32, 32),),
    "two": ((16, 32, 32), (48, 32, 32)),
}


@dataclass(frozen=True, order=True)
class Combination:
    """One picture: a subject in a style, a layout and a background colour."""

    style: str
    name: str
    layout: str
    background: str

    @property
    def caption(self) -> str:
        subject = {
            "plain": self.name,
            "large": f"large {self.name}",
            "left": f"small {self.name} on the left",
            "right": f"small {self.name} on the right",
            "top": f"small {self.name} at the top",
            "bottom": f"small {self.name} at the bottom",
            "two": f"two {plural(self.name)}",
            "three": f"three {plural(self.name)}",
        }[self.layout]
        return f"a {STYLES[self.style]} emoji of {subject}, {self.background} background"

    @property
    def weapon(self) -> bool:
        return self.name in WEAPON_NAMES


def all_combinations() -> list[Combination]:
    """Every combination, in a fixed order."""
    return [
        Combination(style, name, layout, background)
        for style, name in SUBJECTS
        for layout in LAYOUTS
        for background in BACKGROUNDS
    ]


def held_out(combination: Combination, salt: str = "unet", one_in: int = 6) -> bool:
    """Whether the combination is kept out of the training that `salt` names (one in `one_in` is)."""
    key = f"{salt}|{combination.style}|{combination.name}|{combination.layout}|{combination.background}"
    return zlib.crc32(key.encode()) % one_in == 0


def training_combinations() -> list[Combination]:
    """What the VAE and the text encoder are trained on."""
    return [combination for combination in all_combinations() if not held_out(combination)]


def drawn_combinations(unseen: bool) -> list[Combination]:
    """What the UNet is trained on, or the combinations of the same subjects and layouts that are kept from it."""
    return [
        combination
        for combination in all_combinations()
        if (combination.style, combination.name) in DRAWN_SUBJECTS
        and combination.layout in DRAWN_LAYOUTS
        and held_out(combination) == unseen
    ]


def _trim(picture: Image.Image) -> Image.Image:
    """The picture cut to its opaque part, on a transparent square."""
    picture = picture.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox())
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


class Emoji:
    """The source pictures, scaled on demand (kept in memory, a few hundred at a few sizes)."""

    def __init__(self, work: Path = DEFAULT_WORK) -> None:
        raw = Path(work) / "raw"
        listing = raw / "google" / "emoji.json"
        if not listing.exists():
            raise SystemExit(f"{listing} is missing; run: python -m benchmarks.tiny_sd.download")
        entries = {entry["name"].lower(): entry for entry in json.loads(listing.read_text())}
        self.sources: dict[tuple[str, str], Image.Image] = {}
        for style, name in SUBJECTS:
            entry = entries[SOURCE_NAMES[name]]
            if style == "noto":
                path = raw / "google" / "img" / "google" / "64" / entry["image"]
            else:
                code = entry["unified"].lower()
                path = raw / "fluent" / "assets" / f"{code}.webp"
                if not path.exists():
                    path = path.with_name(code.replace("-fe0f", "") + ".webp")
            self.sources[style, name] = _trim(Image.open(path))
        self.scaled = lru_cache(maxsize=8192)(self._scaled)

    def _scaled(self, style: str, name: str, size: int) -> np.ndarray:
        picture = self.sources[style, name].resize((size, size), Image.Resampling.LANCZOS)
        return np.asarray(picture, np.float32) / 255.0  # [size, size, rgba]

    def render(self, combination: Combination, rng: np.random.Generator | None = None) -> np.ndarray:
        """The picture as float32 [64, 64, 3] in 0..1; with `rng`, place, size and shade vary by up to two pixels."""
        background = np.array(BACKGROUNDS[combination.background], np.float32) / 255.0
        if rng is not None:
            background = np.clip(background + rng.uniform(-0.04, 0.04, 3).astype(np.float32), 0, 1)
        canvas = np.empty((SIZE_PX, SIZE_PX, 3), np.float32)
        canvas[:] = background
        layouts = LAYOUTS if rng is not None else LAYOUTS | DRAWN_LAYOUTS
        for x, y, size in layouts[combination.layout]:
            if rng is not None:
                x, y = x + rng.uniform(-2, 2), y + rng.uniform(-2, 2)
                size = size + int(rng.integers(-2, 3))
            picture = self.scaled(combination.style, combination.name, int(size))
            left, top = round(x - size / 2), round(y - size / 2)
            _paste(canvas, picture, left, top)
        return np.clip(canvas, 0, 1)


def _paste(canvas: np.ndarray, picture: np.ndarray, left: int, top: int) -> None:
    """Blend an RGBA picture over the canvas in place, cut at the border."""
    size = picture.shape[0]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + size, SIZE_PX), min(top + size, SIZE_PX)
    part = picture[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha = part[..., 3:]
    canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * (1 - alpha) + part[..., :3] * alpha
