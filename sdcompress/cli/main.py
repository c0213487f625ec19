"""The command line: reads arguments, calls the public API, shows what comes back."""

from __future__ import annotations

import sys

import typer

from sdcompress.cli import compression, evaluation, models, searching
from sdcompress.cli.recipes import recipes_app
from sdcompress.errors import SdcompressError
from sdcompress.version import __version__

app = typer.Typer(
    help="Make Stable Diffusion pipelines smaller and faster, and prove what that cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(recipes_app, name="recipes")
for group in (models, compression, searching, evaluation):
    group.register(app)


def main() -> None:
    """Run the command line. Errors become a message and an exit code; a traceback means a bug of ours."""
    try:
        app()
    except SdcompressError as error:
        for line in str(error).splitlines() or [type(error).__name__]:
            print(f"error: {line}", file=sys.stderr)
        if error.exit_code == 3:
            print(f"this is a bug of sdcompress {__version__}; please report it", file=sys.stderr)
        sys.exit(error.exit_code)
