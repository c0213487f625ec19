"""The documentation is true: its tables are those of the result files; its commands, recipes, names and files exist."""

import re
import sys
import types
from pathlib import Path

import pytest
import yaml

import sdcompress
from benchmarks import docs_tables
from sdcompress.cli.main import app
from sdcompress.planning.recipe import shipped_recipes

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
ALL = "\n".join(TEXTS.values())


@pytest.mark.parametrize("page", docs_tables.PAGES, ids=lambda page: page.name)
def test_tables_are_the_results(page):
    assert docs_tables.with_tables(page) == TEXTS[page], "run python benchmarks/docs_tables.py"


def test_readme_stays_short():
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 200


def test_every_recipe_is_described():
    described = re.findall(r"^\| `([\w-]+)` \|", TEXTS[DOCS / "recipes.md"], flags=re.MULTILINE)
    assert set(shipped_recipes()) <= set(described)


def test_commands_and_public_names_exist():
    commands = {command.name or command.callback.__name__ for command in app.registered_commands} | {"recipes"}
    shown = "".join(re.findall(r"```console\n(.*?)```", ALL, flags=re.DOTALL))
    used = set(re.findall(r"^sdcompress (\w+)", shown, flags=re.MULTILINE))
    assert used and used <= commands
    names = set(re.findall(r"sdcompress\.(\w+)\(", ALL))
    assert names and names <= set(sdcompress.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_to_files(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)[)#]", TEXTS[page]) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = re.findall(r"`((?:sdcompress|recipes|tests|benchmarks|docs)/[\w./-]*\w/?)`", TEXTS[page])
    assert [path for path in paths if not (ROOT / path).exists() and "NAME" not in path and "FAMILY" not in path] == []


def test_every_page_is_in_the_site():
    listed = re.findall(r"[\w/-]+\.md", yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert {DOCS / page for page in listed} == set(DOCS.rglob("*.md"))


def test_the_example_format_passes_its_own_test(monkeypatch):
    format_code, test_code = re.findall(r"```python\n(.*?)```", TEXTS[DOCS / "extending.md"], flags=re.DOTALL)[:2]
    module = types.ModuleType("sdcompress.quant.formats.ternary")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(format_code, module.__dict__)
    tests: dict = {}
    exec(test_code, tests)
    tests["test_error_is_at_most_half_a_step"]()
