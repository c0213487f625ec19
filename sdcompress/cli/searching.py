"""The command that searches for a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from sdcompress import api
from sdcompress.cli.shared import AsJson, Force, interruptible, stderr
from sdcompress.cli.source_options import with_source_options
from sdcompress.progress.terminal import terminal_bars


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(with_source_options(search))


def search(
    source_options: dict[str, Any],
    model: Annotated[
        str | None, typer.Argument(help="tiny-sd, a diffusers folder, a .safetensors checkpoint, or org/name.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Bytes of the weights: 0.3x, 700MB or 1.5GiB.")] = None,
    quality: Annotated[str | None, typer.Option(help="What the pictures must reach: psnr_db>=38.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("search"),
    space: Annotated[Path | None, typer.Option(help="A YAML file that narrows what layers may become.")] = None,
    earlier: Annotated[
        Path | None, typer.Option("--from", help="An earlier search: solve its scores for another target.")
    ] = None,
    finalists: Annotated[int, typer.Option(min=0, help="Recipes to carry out and measure; 0 for none.")] = 3,
    sensitivity: Annotated[
        str, typer.Option(help="gradients of pictures, or errors of the weights alone.")
    ] = "gradients",
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts, one a line.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps (default: the model's own).")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale (default: the model's own).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Find the recipe for a size or a quality, and measure it."""
    from sdcompress.searching.views import summary_lines

    kept = "scores that were made are kept, the same command continues"
    with interruptible(kept), terminal_bars(stderr()) as bars:
        result = api.search(
            model,
            out,
            size=size,
            quality=quality,
            space=space,
            earlier=earlier,
            finalists=finalists,
            sensitivity=cast(Any, sensitivity),
            prompts=prompts,
            steps=steps,
            guidance=guidance,
            device=device,
            force=force,
            progress=bars,
            **source_options,
        )
    if as_json:
        typer.echo(result.model_dump_json(indent=1))
    else:
        for line in summary_lines(result, out):
            print(line, file=sys.stderr)
        typer.echo(out / "recipe.yaml")
    if not result.met:
        raise typer.Exit(1)
