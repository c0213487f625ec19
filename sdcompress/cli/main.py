"""The command line: reads arguments, calls the library, shows what comes back."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sdcompress.cli import convert, reports
from sdcompress.cli.evaluation_options import (
    Device,
    Dtype,
    Guidance,
    ImageFile,
    LowMemory,
    MaskFile,
    Steps,
    Strength,
    Threads,
    with_evaluation_options,
)
from sdcompress.cli.recipes import recipes_app
from sdcompress.cli.source_options import with_source_options
from sdcompress.errors import ArtifactError, GateFailed, SdcompressError, UserError
from sdcompress.version import __version__

if TYPE_CHECKING:
    from sdcompress.evaluation.settings import EvaluationSettings

ARTIFACT = "artifact"  # in the folder of `run`, beside the report
REPORT = "report.json"

app = typer.Typer(
    help="Shrink Stable Diffusion pipelines, and prove what was gained and lost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(recipes_app, name="recipes")
convert.register(app)
reports.register(app)

Model = Annotated[
    str, typer.Argument(help="tiny-sd, a catalog name, a diffusers folder, a .safetensors checkpoint, or org/name.")
]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="A shipped recipe's name, or the path of a YAML file.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, for machines.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Gates = Annotated[
    list[str] | None, typer.Option("--gate", help="A threshold, such as 'clip_score_drift>=-0.3'; repeatable.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier result, or begin an interrupted one anew.")]
LogTo = Annotated[str | None, typer.Option("--log-to", help="Also log the report: mlflow or wandb.")]


def _out() -> Console:
    return Console(soft_wrap=not sys.stdout.isatty())


def _err() -> Console:
    return Console(stderr=True)


@app.command()
@with_source_options
def inspect(
    model: Model,
    source_options: dict[str, Any],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer that owns parameters.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a model's components, exact parameters and bytes; no weight is loaded."""
    from sdcompress.report.inspect_table import render, render_layers
    from sdcompress.sources.inspect_model import describe
    from sdcompress.sources.opening import open_source
    from sdcompress.sources.spec import layers_of

    source = open_source(model, **source_options)
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
@with_source_options
def plan(
    model: Model,
    recipe: RecipeName,
    source_options: dict[str, Any],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer under what becomes of it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe would do to a model, before any work: sizes, skipped layers and why, memory, what opens it."""
    from sdcompress.cli.progress import progress_bars
    from sdcompress.planning.plan import make_plan
    from sdcompress.planning.recipe import load_recipe
    from sdcompress.report.plan_view import describe_plan, render_plan
    from sdcompress.sources.opening import open_source

    loaded, source = load_recipe(recipe), open_source(model, **source_options)
    with progress_bars(_err()) as listener:
        planned = make_plan(loaded, source, listener)
    description = describe_plan(planned)
    if as_json:
        typer.echo(json.dumps(description, indent=2))
    else:
        render_plan(description, _out(), layers=layers)


@app.command()
@with_source_options
def compress(
    model: Model,
    recipe: RecipeName,
    out: Out,
    source_options: dict[str, Any],
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Carry a recipe out and write the compressed pipeline to OUT."""
    _compress(model, recipe, out, source_options, resume, force)
    typer.echo(out)


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="A folder that sdcompress wrote.")],
    load: Annotated[bool, typer.Option(help="Also open the pipeline.")] = True,
) -> None:
    """Check an artifact's files, hashes and shapes, and that it opens."""
    from sdcompress.cli.progress import progress_bars
    from sdcompress.execution.verify import verify as verify_artifact
    from sdcompress.files.manifest import read_manifest

    total = read_manifest(artifact).size_bytes
    with progress_bars(_err(), total) as listener:
        problems = verify_artifact(artifact, load=load, listener=listener)
    if problems:
        raise ArtifactError(problems)
    typer.echo(f"{artifact}: {total:,} bytes, hashes and shapes as the manifest says" + (", opens" if load else ""))


@app.command()
@with_source_options
def generate(
    model: Annotated[str, typer.Argument(help="tiny-sd, a diffusers folder, a checkpoint or an artifact.")],
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")],
    source_options: dict[str, Any],
    seed: Annotated[int, typer.Option(help="Seed of the initial latents.")] = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    strength: Strength = None,
    image: ImageFile = None,
    mask: MaskFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
    low_memory: LowMemory = False,
) -> None:
    """Draw one picture."""
    from sdcompress.backends.generate import generate as generate_picture

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
        source_options=source_options,
        strength=strength,
        image=image,
        mask=mask,
    )
    picture.save(out)
    typer.echo(out)


@app.command()
@with_evaluation_options
@with_source_options
def evaluate(
    original: Annotated[str, typer.Argument(help="The pipeline to compare with: a name, a folder or a checkpoint.")],
    compressed: Annotated[str, typer.Argument(help="The pipeline to judge.")],
    out: Out,
    settings: EvaluationSettings,
    source_options: dict[str, Any],
    gate: Gates = None,
    force: Force = False,
    log_to: LogTo = None,
) -> None:
    """Compare two pipelines: size, memory, latency, CLIP score, and the pictures themselves."""
    with reports.logged(out, log_to):
        failed = _evaluate(original, compressed, out, settings, force, gate or (), source_options=source_options)
    _fail(failed)


@app.command()
@with_evaluation_options
@with_source_options
def run(
    model: Model,
    recipe: RecipeName,
    out: Out,
    settings: EvaluationSettings,
    source_options: dict[str, Any],
    gate: Gates = None,
    resume: Resume = False,
    force: Force = False,
    log_to: LogTo = None,
) -> None:
    """Compress, then evaluate: the artifact goes to OUT/artifact, the report and pictures to OUT."""
    from sdcompress.planning.gates import parse_gate
    from sdcompress.planning.recipe import load_recipe

    for text in gate or ():
        parse_gate(text)  # before an hour of compressing
    artifact = out / ARTIFACT
    with reports.logged(out, log_to):
        if resume and artifact.exists():
            _check_same(artifact, model, recipe, source_options)
        else:
            if not (resume or force) and (out / REPORT).exists():
                raise ArtifactError(f"{out}: holds a report already; choose another --out, or --force to replace it")
            _compress(model, recipe, artifact, source_options, resume, force)
        failed = _evaluate(
            model, str(artifact), out, settings, force, gate or (), load_recipe(recipe).gates, source_options
        )
        reports.fill_card(artifact, out)
    _fail(failed)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can run, what is missing, and which recipes suit it."""
    from sdcompress.backends.doctor import find_out
    from sdcompress.planning.advice import with_advice
    from sdcompress.planning.recipe import shipped_recipes
    from sdcompress.report.doctor_view import render

    with _err().status("asking the libraries what they can do here"):
        findings = with_advice(find_out(), shipped_recipes())
    if as_json:
        typer.echo(json.dumps(findings.to_dict(), indent=2))
    else:
        render(findings, _out())


def _compress(model: str, recipe: str, out: Path, source_options: dict[str, Any], resume: bool, force: bool) -> None:
    from sdcompress.cli.progress import progress_bars
    from sdcompress.execution.execute import execute
    from sdcompress.execution.worker_rank import is_worker_rank, train_as_worker
    from sdcompress.files.artifact import check_output
    from sdcompress.planning.plan import make_plan
    from sdcompress.planning.recipe import load_recipe
    from sdcompress.report.graph_view import graph_lines
    from sdcompress.sources.opening import open_source, with_weights

    if not is_worker_rank():
        check_output(out, resume=resume, force=force)
    console = _err()
    loaded = load_recipe(recipe)
    source = open_source(model, **source_options)
    if source.path is None and loaded.measures:
        source = with_weights(source)
    with _interruptible("measuring begins anew"), progress_bars(console) as listener:
        planned = make_plan(loaded, source, listener)
    if source.path is None:
        planned = make_plan(loaded, with_weights(source))
    if is_worker_rank():
        train_as_worker(planned, out, resume=resume)
        return
    total = planned.modified_source.weights_bytes
    with _interruptible("--resume continues"), progress_bars(console, total) as listener:
        manifest = execute(planned, out, resume=resume, force=force, listener=listener)
    for line in graph_lines(manifest):
        console.print(line, highlight=False, markup=False)


def _evaluate(
    original: str,
    compressed: str,
    out: Path,
    settings: EvaluationSettings,
    force: bool,
    gates: Sequence[str],
    recipe_gates: Sequence[str] | None = None,
    source_options: dict[str, Any] | None = None,
) -> list[str]:
    """The lines of the gates that failed."""
    from sdcompress.api import evaluate as evaluate_pair
    from sdcompress.cli.progress import progress_bars
    from sdcompress.report import print_report
    from sdcompress.report.gates import failures

    with _interruptible("the same command continues"), progress_bars(_err()) as listener:
        report = evaluate_pair(
            original,
            compressed,
            out,
            settings=settings,
            force=force,
            listener=listener,
            command=_command_line(),
            gates=gates,
            recipe_gates=recipe_gates,
            source_options=source_options,
        )
    print_report(report, _out())
    typer.echo(f"report: {out / REPORT}, {out / 'report.md'}, {out / 'report.html'}\npictures: {out / 'images.png'}")
    if report.gates:
        typer.echo(f"gates: {out / 'junit.xml'}")
    return failures(report.gates)


def _fail(gates: Sequence[str]) -> None:
    """Raises GateFailed with the lines of the gates that failed, if any did."""
    if gates:
        raise GateFailed("\n".join(gates))


@contextmanager
def _interruptible(advice: str) -> Iterator[None]:
    """Turns Ctrl-C into a line on stderr and the shell's exit code for it."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; what was finished is kept, {advice}", file=sys.stderr)
        raise typer.Exit(130) from None


def _check_same(artifact: Path, model: str, recipe: str, source_options: dict[str, Any]) -> None:
    """Raises ArtifactError unless the artifact was made of this model with this recipe."""
    from sdcompress.files.manifest import read_manifest
    from sdcompress.planning.recipe import load_recipe
    from sdcompress.sources.opening import open_source

    manifest = read_manifest(artifact)
    # Gates do not change the artifact: with others it is the same, and only judged anew.
    made_of, wanted = (
        {**given, "gates": []} for given in (manifest.recipe, load_recipe(recipe).model_dump(mode="json"))
    )
    source, made_from = open_source(model, **source_options), manifest.source
    if (made_from.name, made_from.options, made_of) != (source.name, source.given_options, wanted):
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
            print(f"this is a bug of sdcompress {__version__}; please report it", file=sys.stderr)
        sys.exit(error.exit_code)
