"""Arguments, consoles and error handling that several commands share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Model = Annotated[
    str, typer.Argument(help="tiny-sd, a catalog name, a diffusers folder, a .safetensors checkpoint, or org/name.")
]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="A shipped recipe's name, or the path of a YAML file.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier result, or begin an interrupted run anew.")]


def stdout() -> Console:
    """Return the console for results. Lines are not wrapped where stdout is no terminal."""
    return Console(soft_wrap=not sys.stdout.isatty())


def stderr() -> Console:
    """Return the console for progress and remarks."""
    return Console(stderr=True)


def command_line() -> str:
    """Return the command as it was typed."""
    return shlex.join(["sdcompress", *sys.argv[1:]])


@contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Turn Ctrl-C into a line on stderr that ends with `advice`, and exit with the shell's code for it."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; {advice}", file=sys.stderr)
        raise typer.Exit(130) from None
