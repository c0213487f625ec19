"""README.md says what is true: its tables are the result files', its commands and recipes exist."""

import re
from pathlib import Path

import pytest

from benchmarks import readme
from sdcompress.cli.main import app
from sdcompress.planning.recipe import shipped_recipes

ROOT = Path(__file__).resolve().parent.parent


def text():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_the_results():
    assert readme.with_tables(text()) == text(), "run python benchmarks/readme.py"


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_is_mentioned(name):
    assert f"`{name}`" in text()


def test_commands_exist():
    known = {command.name or command.callback.__name__ for command in app.registered_commands} | {"recipes"}
    used = set(re.findall(r"^sdcompress (\w+)", text(), flags=re.MULTILINE))
    assert used and used <= known


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text()) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links)
