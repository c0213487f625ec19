"""The command line: reads arguments, calls the library, shows what comes back."""

from __future__ import annotations

import inspect as inspection  # `inspect` is a command here
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.syntax import Syntax

import sdcompress
from sdcompress.errors import ArtifactError, SdcompressError, UserError

if TYPE_CHECKING:
    from sdcompress.evaluate import EvaluationSettings

ARTIFACT = "artifact"  # in the folder of `run`, beside the report
REPORT = "report.json"

app = typer.Typer(
    help="Shrink Stable Diffusion pipelines, and prove what was gained and lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="The recipes that come with sdcompress.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")

Model = Annotated[str, typer.Argument(help="tiny-sd, a catalog name, a diffusers folder, or a hub id (org/name).")]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="A shipped recipe's name, or the path of a YAML file.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, for machines.")]
Variant = Annotated[str | None, typer.Option(help="Weight files of this variant, such as fp16.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier result, or begin an interrupted one anew.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps; ONNX folders also directml, openvino.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16 (of torch pipelines).")]
Prompts = Annotated[Path | None, typer.Option(help="A text file, one prompt a line (default: built-in prompts).")]
Count = Annotated[int | None, typer.Option(min=1, help="Use this many of the prompts.")]
Seeds = Annotated[int, typer.Option(min=1, help="Pictures per prompt, each with a seed of its own.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first picture.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps (default: the model's own).")]
Guidance = Annotated[float | None, typer.Option(min=0, help="Guidance scale (default: the model's own).")]
Height = Annotated[int | None, typer.Option(min=8, help="Pixels (default: the model's own).")]
Width = Annotated[int | None, typer.Option(min=8, help="Pixels (default: the model's own).")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of each process.")]
LowMemory = Annotated[bool, typer.Option("--low-memory", help="Hold one component of an ONNX folder at a time.")]
Clip = Annotated[str | None, typer.Option(help="Folder of the CLIP model that scores (default: the one that fits).")]
NoClip = Annotated[bool, typer.Option("--no-clip", help="Leave the CLIP score out.")]


def _out() -> Console:
    return Console(soft_wrap=not sys.stdout.isatty())


def _err() -> Console:
    return Console(stderr=True)


@app.command()
def inspect(
    model: Model,
    variant: Variant = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer that owns parameters.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a model's components, exact parameters and bytes; no weight is loaded."""
    from sdcompress.inspect_model import describe
    from sdcompress.report.inspect_table import render, render_layers
    from sdcompress.source import open_source
    from sdcompress.spec import layers_of

    source = open_source(model, variant)
    description = describe(source)
    if layers:
        description["layers"] = {
            name: [{"layer": layer.name, "kind": layer.kind, "shape": layer.shape} for layer in layers_of(spec)]
            for name, spec in source.components.items()
        }
    if as_json:
        typer.echo(json.dumps(description, indent=2))
        return
    render(description, _out())
    if layers:
        render_layers(description["layers"], _out())


@app.command()
def plan(
    model: Model,
    recipe: RecipeName,
    variant: Variant = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every layer under what becomes of it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe would do to a model, before any work: sizes, skipped layers and why, memory, what opens it."""
    from sdcompress.plan import make_plan
    from sdcompress.recipe import load_recipe
    from sdcompress.report.plan_view import describe_plan, render_plan
    from sdcompress.source import open_source

    description = describe_plan(make_plan(load_recipe(recipe), open_source(model, variant)))
    if as_json:
        typer.echo(json.dumps(description, indent=2))
    else:
        render_plan(description, _out(), layers=layers)


@app.command()
def compress(
    model: Model, recipe: RecipeName, out: Out, variant: Variant = None, resume: Resume = False, force: Force = False
) -> None:
    """Carry a recipe out and write the compressed pipeline to OUT."""
    _compress(model, recipe, out, variant, resume, force)
    typer.echo(out)


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="A folder that sdcompress wrote.")],
    load: Annotated[bool, typer.Option(help="Also open the pipeline.")] = True,
) -> None:
    """Check an artifact's files, hashes and shapes, and that it opens."""
    from sdcompress.artifact import read_manifest
    from sdcompress.progress import byte_progress
    from sdcompress.verify import verify as verify_artifact

    total = sum(entry["size_bytes"] for entry in read_manifest(artifact)["files"].values())
    with byte_progress(total, _err()) as bars:
        problems = verify_artifact(artifact, load=load, advance=lambda size: bars.advance("hashing", size))
    if problems:
        raise ArtifactError(problems)
    typer.echo(f"{artifact}: {total:,} bytes, hashes and shapes as the manifest says" + (", opens" if load else ""))


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="tiny-sd, a diffusers folder or an artifact.")],
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the initial latents.")] = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    low_memory: LowMemory = False,
) -> None:
    """Draw one picture."""
    from sdcompress.generate import generate as generate_picture

    if out.suffix.lower() != ".png" or not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: must be a .png in a folder that exists")
    picture = generate_picture(
        model,
        prompt,
        seed=seed,
        steps=steps,
        guidance=guidance,
        device=device,
        dtype=dtype,
        threads=threads,
        low_memory=low_memory,
    )
    picture.save(out)
    typer.echo(out)


def _settings(
    prompts: Prompts = None,
    count: Count = None,
    seeds: Seeds = 1,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Height = None,
    width: Width = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    low_memory: LowMemory = False,
    clip: Clip = None,
    no_clip: NoClip = False,
) -> EvaluationSettings:
    from sdcompress.backends.torch.loading import DTYPES
    from sdcompress.evaluate import EvaluationSettings
    from sdcompress.prompts import read_prompts

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
        height=height,
        width=width,
        device=device,
        dtype=dtype,
        threads=threads,
        low_memory=low_memory,
        clip=clip,
        use_clip=not no_clip,
    )


def _with_evaluation_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `_settings` added; it gets them as its argument `settings`."""
    options, own = _parameters(_settings), _parameters(command)

    def wrapped(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in options}
        command(**given, settings=_settings(**chosen))

    parameters = [each for each in (*own.values(), *options.values()) if each.name != "settings"]
    keyword_only = [each.replace(kind=inspection.Parameter.KEYWORD_ONLY) for each in parameters]
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    wrapped.__signature__ = inspection.Signature(keyword_only)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def _parameters(function: Callable[..., Any]) -> dict[str, inspection.Parameter]:
    """Name -> parameter with its annotation evaluated; what is imported for type checkers alone counts as anything."""
    hints = get_type_hints(function, localns={"EvaluationSettings": Any}, include_extras=True)
    given = inspection.signature(function).parameters
    return {name: each.replace(annotation=hints[name]) for name, each in given.items()}


@app.command()
@_with_evaluation_options
def evaluate(
    original: Annotated[str, typer.Argument(help="The pipeline to compare with: a name or a folder.")],
    compressed: Annotated[str, typer.Argument(help="The pipeline to judge.")],
    out: Out,
    settings: EvaluationSettings,
    force: Force = False,
) -> None:
    """Compare two pipelines: size, memory, latency, CLIP score, and the pictures themselves."""
    _evaluate(original, compressed, out, settings, force)


@app.command()
@_with_evaluation_options
def run(
    model: Model,
    recipe: RecipeName,
    out: Out,
    settings: EvaluationSettings,
    variant: Variant = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Compress, then evaluate: the artifact goes to OUT/artifact, the report and pictures to OUT."""
    artifact = out / ARTIFACT
    if resume and artifact.exists():
        _check_same(artifact, model, recipe)
    else:
        if not (resume or force) and (out / REPORT).exists():
            raise ArtifactError(f"{out}: holds a report already; choose another --out, or --force to replace it")
        _compress(model, recipe, artifact, variant, resume, force)
    _evaluate(model, str(artifact), out, settings, force)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can run, what is missing, and which recipes suit it."""
    from sdcompress.doctor import diagnose
    from sdcompress.report.doctor_view import render

    with _err().status("asking the libraries what they can do here"):
        findings = diagnose()
    if as_json:
        typer.echo(json.dumps(findings, indent=2))
    else:
        render(findings, _out())


@recipes_app.command("list")
def list_recipes() -> None:
    """List the shipped recipes."""
    from sdcompress.recipe import load_recipe, shipped_recipes

    for name in shipped_recipes():
        typer.echo(f"{name:<21}{load_recipe(name).description.strip()}")


@recipes_app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(help="A shipped recipe's name.")]) -> None:
    """Print a recipe with its comments."""
    from sdcompress.recipe import find_recipe

    text = find_recipe(name).read_text(encoding="utf-8")
    if sys.stdout.isatty():
        Console().print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:
        typer.echo(text, nl=False)


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A shipped recipe's name.")],
    to: Annotated[Path, typer.Argument(help="The file to write.")],
) -> None:
    """Copy a recipe to a file of your own, to change it."""
    from sdcompress.recipe import find_recipe

    source = find_recipe(name)
    if to.is_dir():
        to = to / source.name
    if to.exists():
        raise UserError(f"{to}: exists already; choose another name")
    if not to.absolute().parent.is_dir():
        raise UserError(f"{to}: the folder {to.parent} does not exist; create it first")
    shutil.copyfile(source, to)
    typer.echo(to)


def _compress(model: str, recipe: str, out: Path, variant: str | None, resume: bool, force: bool) -> None:
    from sdcompress.artifact import check_output
    from sdcompress.execute import execute
    from sdcompress.following import follow, is_follower
    from sdcompress.hub import with_weights
    from sdcompress.plan import make_plan
    from sdcompress.progress import byte_progress
    from sdcompress.recipe import load_recipe
    from sdcompress.report.graph_view import graph_lines
    from sdcompress.source import open_source

    if not is_follower():
        check_output(out, resume=resume, force=force)
    console = _err()
    loaded = load_recipe(recipe)
    planned = make_plan(loaded, open_source(model, variant))
    if planned.source.path is None:
        planned = make_plan(loaded, with_weights(planned.source, variant))
    if is_follower():
        follow(planned, out, resume=resume)
        return
    with _interruptible("--resume continues"), byte_progress(planned.source.weights_bytes, console) as bars:
        manifest = execute(
            planned, out, resume=resume, force=force, advance=bars.advance, calibrating=bars.calibrating,
            training=bars.training,
        )  # fmt: skip
    for line in graph_lines(manifest):
        console.print(line, highlight=False, markup=False)


def _evaluate(original: str, compressed: str, out: Path, settings: EvaluationSettings, force: bool) -> None:
    from sdcompress.evaluate import evaluate as evaluate_pair
    from sdcompress.report import render

    with _interruptible("the same command continues"):
        report = evaluate_pair(original, compressed, out, settings=settings, force=force, command=_command_line())
    render(report, _out())
    typer.echo(f"report: {out / REPORT}, {out / 'report.md'}\npictures: {out / 'images.png'}")


@contextmanager
def _interruptible(advice: str) -> Iterator[None]:
    """Turns Ctrl-C into a line on stderr and the shell's exit code for it."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; what was finished is kept, {advice}", file=sys.stderr)
        raise typer.Exit(130) from None


def _check_same(artifact: Path, model: str, recipe: str) -> None:
    """Raises ArtifactError unless the artifact was made of this model with this recipe."""
    from sdcompress.artifact import read_manifest
    from sdcompress.recipe import load_recipe
    from sdcompress.source import open_source

    manifest = read_manifest(artifact)
    made_of = (manifest["source"]["name"], manifest["recipe"])
    if made_of != (open_source(model).name, load_recipe(recipe).model_dump(mode="json")):
        raise ArtifactError(f"{artifact}: was made of another model or recipe; choose another --out, or --force")


def _command_line() -> str:
    """The command as it was typed, for reports."""
    return shlex.join(["sdcompress", *sys.argv[1:]])


def main() -> None:
    """Entry point: errors become one message and an exit code, never a traceback for what a user can fix."""
    try:
        app()
    except SdcompressError as error:
        for line in str(error).splitlines() or [type(error).__name__]:
            print(f"error: {line}", file=sys.stderr)
        if error.exit_code == 3:
            print(f"this is a bug of sdcompress {sdcompress.__version__}; please report it", file=sys.stderr)
        sys.exit(error.exit_code)
