"""Commands that write and check artifacts: compress, verify and convert."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from sdcompress import api
from sdcompress.cli.shared import AsJson, Force, Model, Out, RecipeName, Resume, interruptible, stderr
from sdcompress.cli.source_options import with_source_options
from sdcompress.progress.terminal import terminal_bars


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(with_source_options(compress))
    app.command()(verify)
    app.command()(convert)


def compress(
    model: Model,
    recipe: RecipeName,
    out: Out,
    source_options: dict[str, Any],
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Carry a recipe out and write the compressed pipeline to OUT."""
    with interruptible("what was finished is kept, --resume continues"), terminal_bars(stderr()) as bars:
        artifact = api.compress(model, recipe, out, resume=resume, force=force, progress=bars, **source_options)
    if artifact is not None:
        show_graphs(artifact)
        typer.echo(out)


def show_graphs(artifact: api.Artifact) -> None:
    """Print on stderr what the graph passes of an ONNX export did."""
    from sdcompress.report.graph_view import graph_lines

    for line in graph_lines(artifact.manifest):
        print(line, file=sys.stderr)


def verify(
    artifact: Annotated[Path, typer.Argument(help="A folder that sdcompress wrote.")],
    load: Annotated[bool, typer.Option(help="Also open the pipeline.")] = True,
) -> None:
    """Check an artifact's files, hashes and shapes, and that it opens."""
    with terminal_bars(stderr()) as bars:
        found = api.verify(artifact, load=load, progress=bars)
    opens = ", opens" if load else ""
    typer.echo(f"{artifact}: {found.size_bytes:,} bytes, hashes and shapes as the manifest says{opens}")


def convert(
    model: Annotated[str, typer.Argument(help="gguf: a pipeline for torch. openvino: an ONNX folder.")],
    to: Annotated[str, typer.Option("--to", help="gguf (the UNet or transformer) or openvino (the whole pipeline).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="gguf: the file to write; openvino: the folder.")],
    type_: Annotated[
        str | None, typer.Option("--type", help="gguf: f16, bf16, q8_0 (default), q5_1, q5_0, q4_1 or q4_0.")
    ] = None,
    keys: Annotated[
        str | None, typer.Option(help="gguf: names of tensors, original (where they are known) or diffusers.")
    ] = None,
    rest: Annotated[
        str | None, typer.Option(help="gguf: f16 (default) or f32, for tensors of several dimensions left alone.")
    ] = None,
    keep_sensitive: Annotated[
        bool | None,
        typer.Option(help="gguf: types of 4 and 5 bits spare the first and last layers and the like (default)."),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Weight files of this variant, such as fp16.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a pipeline's denoiser as GGUF, or an ONNX folder as OpenVINO IR, and say what it became."""
    from sdcompress.report.conversion import conversion_lines

    with interruptible("nothing was written"), terminal_bars(stderr()) as bars:
        done = api.convert(
            model,
            cast(Any, to),
            out,
            type=type_,
            keys=keys,
            rest=rest,
            keep_sensitive=keep_sensitive,
            force=force,
            progress=bars,
            variant=variant,
        )
    if as_json:
        typer.echo(json.dumps(done.facts, indent=2))
        return
    for line in conversion_lines(done.facts, out, model):
        print(line, file=sys.stderr)
    typer.echo(out)
