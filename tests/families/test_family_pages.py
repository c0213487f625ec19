"""docs/families: sizes are what plans say, every family and catalog entry has its place, recipes exist."""

from __future__ import annotations

import re

import pytest

from benchmarks.family_sizes import PAGES, with_sizes
from sdcompress.families.registry import known_families
from sdcompress.planning.recipe import shipped_recipes
from sdcompress.sources import catalog

TEXTS = {page.name: page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md"))}


@pytest.mark.parametrize("page", TEXTS)
def test_sizes_are_what_plans_say(page: str) -> None:
    assert with_sizes(TEXTS[page]) == TEXTS[page], "run python benchmarks/family_sizes.py"


def test_every_family_has_a_page() -> None:
    names = {family.name for family in known_families().values()}
    assert len(TEXTS) - 1 == len(names)
    for page in TEXTS:
        assert page == "README.md" or f"]({page})" in TEXTS["README.md"]
    sized = {name for text in TEXTS.values() for name in re.findall(r"<!-- sizes ([\w.-]+):", text)}
    assert sized >= set(catalog.names()) - {"sd14", "sdxl-turbo"}  # which have the shapes of others


def test_links_and_recipes_exist() -> None:
    for page, text in TEXTS.items():
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert "://" in link or (PAGES / link).exists(), (page, link)
    listed = {name for text in TEXTS.values() for _, names in re.findall(r"sizes ([\w.-]+): ([\w -]+) -->", text)
              for name in names.split()}  # fmt: skip
    assert listed <= set(shipped_recipes())
