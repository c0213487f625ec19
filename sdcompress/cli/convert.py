"""The command `convert`: a pipeline as files of another runtime."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from sdcompress.errors import UserError

if TYPE_CHECKING:
    from sdcompress.sources.source import Source

TARGETS = ("gguf", "openvino")


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command()(convert)


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
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, for machines.")] = False,
) -> None:
    """Write a pipeline's denoiser as GGUF, or an ONNX folder as OpenVINO IR, and say what it became."""
    from sdcompress.sources.opening import open_source

    if to not in TARGETS:
        raise UserError(f"--to {to}: use one of {', '.join(TARGETS)}")
    for_gguf = {"--type": type_, "--keys": keys, "--rest": rest, "--keep-sensitive": keep_sensitive}
    if to == "gguf":
        from sdcompress.backends.gguf.layouts import KEYS
        from sdcompress.backends.gguf.types import REST, TYPES

        for option, value, known in (("--type", type_, tuple(TYPES)), ("--keys", keys, KEYS), ("--rest", rest, REST)):
            if value is not None and value not in known:
                raise UserError(f"{option} {value}: use one of {', '.join(known)}")
    elif given := [option for option, value in for_gguf.items() if value is not None]:
        raise UserError(f"{given[0]}: is for --to gguf; an OpenVINO folder is in the precision of the ONNX folder")
    source = open_source(model, variant)
    try:
        if to == "gguf":
            facts = _gguf(
                source,
                out,
                wanted=type_ or "q8_0",
                keys=keys,
                rest=rest or "f16",
                keep_sensitive=keep_sensitive is not False,
                force=force,
            )
        else:
            facts = _openvino(source, out, force)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    from sdcompress.report.conversion import conversion_lines

    for line in conversion_lines(facts, out, model):
        print(line, file=sys.stderr)
    typer.echo(out)


def _gguf(source: Source, out: Path, **choice: Any) -> dict[str, Any]:
    """What was written; `choice` is what `write_gguf` takes by name."""
    from sdcompress.backends.gguf.convert import check_plan, denoiser_of, write_gguf
    from sdcompress.cli.progress import progress_bars
    from sdcompress.sources.opening import with_weights

    check_plan(source, out, **choice)  # before gigabytes are downloaded
    source = with_weights(source)
    with progress_bars(Console(stderr=True), denoiser_of(source).weights_bytes) as listener:
        return write_gguf(source, out, **choice, listener=listener)


def _openvino(source: Source, out: Path, force: bool) -> dict[str, Any]:
    from sdcompress.backends.openvino.convert import check_conversion, write_openvino
    from sdcompress.cli.progress import progress_bars

    check_conversion(source, out, force)  # before the bar is drawn
    with progress_bars(Console(stderr=True), source.weights_bytes) as listener:
        return write_openvino(source, out, force=force, listener=listener).to_json()
