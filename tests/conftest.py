"""Fixtures shared by the tests: a random pipeline small enough to be made in a second, in the real classes."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny_parts import clip_text, tiny_unet, tiny_vae
from tiny_pipelines import make, sd1

# One thread is faster than two for models this small, and gives the same bytes on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 Stable Diffusion pipeline with seeded random weights, about 1 M parameters; do not write into it."""
    import torch

    folder = tmp_path_factory.mktemp("models") / "nano"
    torch.manual_seed(0)
    unet, vae, text_encoder = tiny_unet(layers_per_block=2), tiny_vae(), clip_text(projection=512)
    sd1(folder.parent, unet=unet, vae=vae, text_encoder=text_encoder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def graph_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Traced graphs are kept for the session, so that each is traced once; the variable may say where for longer."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # by all processes of the session
    os.environ.setdefault("SDCOMPRESS_CACHE", str(shared / "cache"))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Evaluations without processes; the class counts what is asked of workers and can be told to fail."""
    import torch
    from in_process import InProcess

    from sdcompress.evaluation import session

    monkeypatch.setattr(session, "WorkerProcess", InProcess)
    monkeypatch.setattr(InProcess, "left", 10_000)
    for name in ("asked", "started"):
        monkeypatch.setattr(InProcess, name, Counter())
    threads = torch.get_num_threads()
    yield InProcess
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny pipeline, made when it is first asked for; do not write into it."""
    root = tmp_path_factory.mktemp("families")
    return cache(lambda family: make(family, root / family))


@pytest.fixture
def nano_copy(nano_folder: Path, tmp_path: Path) -> Path:
    """A copy of the nano pipeline that a test may spoil."""
    return Path(shutil.copytree(nano_folder, tmp_path / "nano"))
