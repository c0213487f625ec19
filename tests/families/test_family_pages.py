"""docs/families: sizes are what plans say, and every family and catalog entry has its place."""

from __future__ import annotations

import re

import pytest

from benchmarks.family_sizes import PAGES, with_sizes
from sdcompress.families.registry import known_families
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
