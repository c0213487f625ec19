"""The options that `evaluate` and `run` share, and the settings they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from sdcompress.errors import UserError

if TYPE_CHECKING:
    from sdcompress.evaluation.settings import EvaluationSettings

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps; ONNX folders also directml, openvino.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16 (of torch pipelines).")]
Prompts = Annotated[Path | None, typer.Option(help="A text file, one prompt a line (default: built-in prompts).")]
Count = Annotated[int | None, typer.Option(min=1, help="Use this many of the prompts.")]
Seeds = Annotated[int, typer.Option(min=1, help="Pictures per prompt, each with a seed of its own.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first picture.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps (default: the model's own).")]
Guidance = Annotated[float | None, typer.Option(min=0, help="Guidance scale (default: the model's own).")]
Strength = Annotated[
    float | None, typer.Option(min=0.01, max=1, help="How much of a picture is drawn over (default: the model's own).")
]
ImageFile = Annotated[
    Path | None,
    typer.Option("--image", help="A picture to draw from, or a folder (default: built-in ones), where one is needed."),
]
MaskFile = Annotated[
    Path | None, typer.Option("--mask", help="White where --image is to be drawn anew: a file, or a folder.")
]
Height = Annotated[int | None, typer.Option(min=8, help="Pixels (default: the model's own).")]
Width = Annotated[int | None, typer.Option(min=8, help="Pixels (default: the model's own).")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of each process.")]
LowMemory = Annotated[bool, typer.Option("--low-memory", help="Hold one component of an ONNX folder at a time.")]
Clip = Annotated[str | None, typer.Option(help="Folder of the CLIP model that scores (default: the one that fits).")]
NoClip = Annotated[bool, typer.Option("--no-clip", help="Leave the CLIP score out.")]
NoiseFloor = Annotated[
    str, typer.Option(help="Sources of noise to measure on the original: seed, bfloat16, batch, by commas; or none.")
]
FloorCount = Annotated[int, typer.Option(min=2, help="Pictures of each source of noise.")]
ComponentMetrics = Annotated[bool, typer.Option(help="Compare the components one by one, on a few prompts.")]
Attribute = Annotated[
    bool, typer.Option("--attribute", help="Swap one component, and one step at a time, into the original.")
]
AttributeCount = Annotated[int, typer.Option(min=1, help="Pictures of each swap.")]


def make_settings(
    prompts: Prompts = None,
    count: Count = None,
    seeds: Seeds = 1,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    strength: Strength = None,
    image: ImageFile = None,
    mask: MaskFile = None,
    height: Height = None,
    width: Width = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    low_memory: LowMemory = False,
    clip: Clip = None,
    no_clip: NoClip = False,
    noise_floor: NoiseFloor = "seed,bfloat16",
    noise_floor_count: FloorCount = 8,
    component_metrics: ComponentMetrics = True,
    attribute: Attribute = False,
    attribute_count: AttributeCount = 8,
) -> EvaluationSettings:
    """The settings that the options say. UserError for what no option allows."""
    from sdcompress.backends.torch.loading import DTYPES
    from sdcompress.calibration.prompt_files import read_prompts
    from sdcompress.evaluation.settings import EvaluationSettings

    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: use one of {', '.join(DTYPES)}")
    for option, pixels in (("--height", height), ("--width", width)):
        if pixels is not None and pixels % 8:
            near = pixels // 8 * 8
            raise UserError(f"{option} {pixels}: must be a multiple of 8; use {near} or {near + 8}")
    return EvaluationSettings(
        prompts=read_prompts(prompts) if prompts else None,
        prompt_count=count,
        seeds_per_prompt=seeds,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        strength=strength,
        image=image,
        mask=mask,
        height=height,
        width=width,
        device=device,
        dtype=dtype,
        threads=threads,
        low_memory=low_memory,
        clip=clip,
        use_clip=not no_clip,
        noise_floor=_sources(noise_floor),  # type: ignore[arg-type]
        noise_floor_count=noise_floor_count,
        component_metrics=component_metrics,
        attribute=attribute,
        attribute_count=attribute_count,
    )


def _sources(text: str) -> tuple[str, ...]:
    from sdcompress.errors import nearest
    from sdcompress.evaluation.settings import NOISE_SOURCES

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if names in ((), ("none",)):
        return ()
    for name in names:
        if name not in NOISE_SOURCES:
            known = nearest(name, (*NOISE_SOURCES, "none"))
            raise UserError(f"--noise-floor {text}: no source {name!r}; {known}")
    return names


def with_evaluation_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `make_settings` added; it gets them as its argument `settings`."""
    return with_options(command, make_settings, "settings")


def with_options(command: Callable[..., None], make: Callable[..., Any], argument: str) -> Callable[..., None]:
    """The command with the options that are `make`'s parameters; it gets what that returns as `argument`."""
    options, own = _parameters(make), _parameters(command)

    def wrapped(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in options}
        command(**given, **{argument: make(**chosen)})

    parameters = [each for each in (*own.values(), *options.values()) if each.name != argument]
    keyword_only = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Name -> parameter with its annotation evaluated; what is imported for type checkers alone counts as anything."""
    hints = get_type_hints(function, localns={"EvaluationSettings": Any}, include_extras=True)
    given = inspect.signature(function).parameters
    return {name: each.replace(annotation=hints[name]) for name, each in given.items()}
