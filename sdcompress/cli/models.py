"""Commands about a model: inspect, plan, generate, and about the machine: doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcompress import api
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
)
from sdcompress.cli.shared import AsJson, Model, RecipeName, interruptible, stderr, stdout
from sdcompress.cli.source_options import with_source_options
from sdcompress.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (inspect, plan, generate):
        app.command()(with_source_options(command))
    app.command()(doctor)


def inspect(
    model: Model,
    source_options: dict[str, Any],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer that owns parameters.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a model's components, exact parameters and bytes; no weight is loaded."""
    from sdcompress.report.inspect_table import render, render_layers

    description = api.describe(model, layers=layers, **source_options)
    if as_json:
        typer.echo(json.dumps(description, indent=2))
        return
    render(description, stdout())
    if layers:
        render_layers(description["layers"], stdout())


def plan(
    model: Model,
    recipe: RecipeName,
    source_options: dict[str, Any],
    layers: Annotated[bool, typer.Option("--layers", help="List every layer under what becomes of it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe would do to a model, before any work: sizes, skipped layers and why, memory, what opens it."""
    from sdcompress.progress.terminal import terminal_bars
    from sdcompress.report.plan_view import describe_plan, render_plan

    with terminal_bars(stderr()) as bars:
        planned = api.make_plan(model, recipe, progress=bars, **source_options)
    description = describe_plan(planned)
    if as_json:
        typer.echo(json.dumps(description, indent=2))
    else:
        render_plan(description, stdout(), layers=layers)


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
    if out.suffix.lower() != ".png" or not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: must be a .png in a folder that exists")
    with interruptible("nothing was written"):
        picture = api.generate(
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


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can run, what is missing, and which recipes suit it."""
    from sdcompress.report.doctor_view import render

    with stderr().status("asking the libraries what they can do here"):
        findings = api.diagnose()
    if as_json:
        typer.echo(json.dumps(findings.to_dict(), indent=2))
    else:
        render(findings, stdout())
