"""Folders of tiny pipelines, each made once in a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import make


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny pipeline; do not write into it."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = make(family, root / family)
        return Path(made[family])

    return folder
