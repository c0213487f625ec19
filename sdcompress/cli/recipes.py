"""Commands about the recipes that come with sdcompress: list, show and copy."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.syntax import Syntax

from sdcompress.api import find_recipe, load_recipe, shipped_recipes
from sdcompress.errors import UserError

recipes_app = typer.Typer(help="The recipes that come with sdcompress.", no_args_is_help=True)


@recipes_app.command("list")
def list_recipes() -> None:
    """List the shipped recipes."""
    shipped = shipped_recipes()
    width = max(map(len, shipped)) + 2
    for name in shipped:
        typer.echo(f"{name:<{width}}{load_recipe(name).description.strip()}")


@recipes_app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(help="A shipped recipe's name.")]) -> None:
    """Print a recipe with its comments."""
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
    source = find_recipe(name)
    if to.is_dir():
        to = to / source.name
    if to.exists():
        raise UserError(f"{to}: exists already; choose another name")
    if not to.absolute().parent.is_dir():
        raise UserError(f"{to}: the folder {to.parent} does not exist; create it first")
    shutil.copyfile(source, to)
    typer.echo(to)
