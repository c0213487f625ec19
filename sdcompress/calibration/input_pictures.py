"""The pictures that a pipeline draws from besides its prompt: the user's files, or built-in ones made from a seed.

Image-to-image, inpainting, ControlNet and SDXL's refiner need them. The same seed, size and kind give the same picture
everywhere, so that two pipelines are compared on the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import UserError
from sdcompress.families.registry import known_families
from sdcompress.files.artifact import sha256_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdcompress.families.architecture import PictureInput

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
BUILT_IN = {
    "image": "built-in scene, made from each picture's seed",
    "mask_image": "built-in ellipse in the middle",
    "control_image": "edges of the built-in scene, made from each picture's seed",
}
# Pipelines that take int(num_inference_steps * strength) steps, which may be none; others round up or do not scale.
_ROUNDS_DOWN = ("StableDiffusionImg2Img", "StableDiffusionInpaint", "StableDiffusionXL")


@dataclass(frozen=True)
class PictureFiles:
    """The user's files, in order; empty where built-in pictures are used."""

    images: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()

    def of_kind(self, kind: PictureInput) -> tuple[Path, ...]:
        """Return the masks or the other pictures."""
        return self.masks if kind == "mask_image" else self.images


@dataclass(frozen=True)
class PictureRequest:
    """What the pictures of one drawing are made of: a seed, and argument -> path of the user's file."""

    seed: int
    files: dict[str, str] = field(default_factory=dict)


def wanted_pictures(pipeline_class: str) -> Mapping[str, PictureInput]:
    """Return argument -> kind of the pictures that pipelines of this class draw from; {} where they need none."""
    family = known_families().get(pipeline_class)
    return {} if family is None else family.pictures.get(pipeline_class, {})


def always_given(pipeline_class: str) -> dict[str, Any]:
    """Return the arguments that pipelines of this class are always called with (`Family.call`)."""
    family = known_families().get(pipeline_class)
    return {} if family is None else dict(family.call)


def find_files(image: Path | None, mask: Path | None, pipeline_class: str) -> PictureFiles:
    """Return the files that --image and --mask name, each a file or a folder.

    Raises:
        UserError: the pipeline takes no such pictures, or a file cannot be read.
    """
    kinds = set(wanted_pictures(pipeline_class).values())
    if image is None and mask is None:
        return PictureFiles()
    if not kinds:
        option, value = ("--image", image) if image is not None else ("--mask", mask)
        raise UserError(
            f"{option} {value}: a {pipeline_class} draws from the prompt alone; leave it out, or give an "
            f"image-to-image, inpainting or ControlNet pipeline"
        )
    if mask is not None and "mask_image" not in kinds:
        raise UserError(f"--mask {mask}: a {pipeline_class} takes no mask, only inpainting pipelines do; leave it out")
    if mask is not None and image is None:
        raise UserError(f"--mask {mask}: says which part of a picture to draw anew; give that picture with --image")
    images, masks = _list(image, "--image"), _list(mask, "--mask")
    if min(len(images), len(masks)) > 1 and len(images) != len(masks):
        raise UserError(
            f"--mask {mask}: holds {len(masks)} masks for {len(images)} pictures, which are paired by their names' "
            f"order; give as many, or one for all"
        )
    return PictureFiles(images, masks)


def request_pictures(files: PictureFiles, pipeline_class: str, index: int, seed: int) -> PictureRequest:
    """Return what the drawing of that index is drawn from; the user's files take turns."""
    wanted = wanted_pictures(pipeline_class)
    chosen = {name: files.of_kind(kind) for name, kind in wanted.items()}
    return PictureRequest(seed, {name: str(each[index % len(each)]) for name, each in chosen.items() if each})


def make_pictures(pipeline: Any, request: PictureRequest, options: Mapping[str, Any]) -> dict[str, Image]:
    """Return argument -> picture, in the size that the pipeline draws with these options.

    The user's pictures are cropped to its proportions around their middle, and scaled.
    """
    wanted = wanted_pictures(type(pipeline).__name__)
    if not wanted:
        return {}
    size = drawn_size(pipeline, options)
    files = request.files
    return {
        name: _read(Path(files[name]), kind, size) if name in files else built_in(kind, request.seed, size)
        for name, kind in wanted.items()
    }


def drawn_size(pipeline: Any, options: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width in pixels: those of the options, else the pipeline's own."""
    denoiser = pipeline.components.get("unet") or pipeline.components.get("transformer")
    sample = getattr(pipeline, "default_sample_size", None) or denoiser.config.sample_size
    edges = sample if isinstance(sample, list | tuple) else (sample, sample)
    height, width = (
        options.get(name) or edge * pipeline.vae_scale_factor
        for name, edge in zip(("height", "width"), edges, strict=True)
    )
    return int(height), int(width)


def describe_pictures(files: PictureFiles, pipeline_class: str) -> dict[str, Any]:
    """Return argument -> what it is given, for a report: a sentence, or path and SHA-256 of each file."""
    return {
        name: [{"path": str(file), "sha256": sha256_of(file)} for file in files.of_kind(kind)] or BUILT_IN[kind]
        for name, kind in wanted_pictures(pipeline_class).items()
    }


def fewest_steps(pipeline_class: str, strength: float | None) -> int:
    """Return the fewest num_inference_steps with which a pipeline of this class draws at all, at this strength."""
    if strength is None or not pipeline_class.startswith(_ROUNDS_DOWN):
        return 1
    return next(steps for steps in range(1, 10_002) if int(steps * strength) or steps > 10_000)


def check_steps(pipeline_class: str, steps: int, strength: float | None) -> None:
    """Raise UserError if so few steps at this strength are none."""
    fewest = fewest_steps(pipeline_class, strength)
    if steps < fewest:
        raise UserError(
            f"--steps {steps}: a {pipeline_class} takes steps x strength, {steps} x {strength:g}, rounded down, which "
            f"is none; use --steps {fewest} or more, or a higher --strength"
        )


def built_in(kind: PictureInput, seed: int, size: tuple[int, int]) -> Image:
    """Return the built-in picture of that kind. A mask is white where the picture is drawn anew.

    Args:
        size: height and width in pixels.
    """
    import numpy as np
    from PIL import Image

    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x, y = (x + 0.5) / width, (y + 0.5) / height
    if kind == "mask_image":
        return Image.fromarray(np.where(_ellipse(x, y, 0.5, 0.5, 0.3, 0.3), 255, 0).astype(np.uint8), mode="L")
    scene = _scene(x, y, np.random.default_rng(seed))
    if kind == "control_image":
        grey = scene.mean(axis=2)
        steep = np.hypot(*np.gradient(grey)) > 0.08  # above what the smooth background has from 32 pixels on
        return Image.fromarray(np.repeat(np.where(steep, 255, 0).astype(np.uint8)[..., None], 3, axis=2))
    return Image.fromarray((scene * 255).round().astype(np.uint8))


def _scene(x: Any, y: Any, random: Any) -> Any:
    """Return a smooth colourful background with five ellipses and boxes on it [height, width, 3], from 0 to 1."""
    import numpy as np

    corners = random.uniform(0.15, 0.85, (4, 3))
    weights = np.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], axis=-1)
    scene = weights @ corners  # [height, width, 3]
    for place in range(5):
        centre_x, centre_y = random.uniform(0.2, 0.8, 2)
        radius_x, radius_y = random.uniform(0.08, 0.2, 2)
        inside = _ellipse(x, y, centre_x, centre_y, radius_x, radius_y)
        if place % 2:
            inside = (abs(x - centre_x) < radius_x) & (abs(y - centre_y) < radius_y)
        scene[inside] = random.uniform(0, 1, 3)
    return scene


def _ellipse(x: Any, y: Any, centre_x: float, centre_y: float, radius_x: float, radius_y: float) -> Any:
    return ((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2 < 1


def _list(path: Path | None, option: str) -> tuple[Path, ...]:
    """Return the picture files at a path, sorted by name. UserError where one cannot be opened."""
    from PIL import Image, UnidentifiedImageError

    if path is None:
        return ()
    if not path.exists():
        raise UserError(f"{option} {path}: no such file or folder")
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise UserError(f"{option} {path}: the folder holds no picture ({', '.join(SUFFIXES)})")
    for file in files:
        try:
            with Image.open(file) as picture:
                picture.verify()
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(f"{option} {file}: is no picture that can be read ({error})") from None
    return tuple(file.resolve() for file in files)


def _read(file: Path, kind: PictureInput, size: tuple[int, int]) -> Image:
    from PIL import Image, ImageOps

    height, width = size
    with Image.open(file) as picture:
        upright = ImageOps.exif_transpose(picture).convert("L" if kind == "mask_image" else "RGB")
    how = Image.Resampling.NEAREST if kind == "mask_image" else Image.Resampling.LANCZOS
    return ImageOps.fit(upright, (width, height), how)
