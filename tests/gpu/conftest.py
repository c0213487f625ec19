"""The device of the tests that need a GPU. Without one they are skipped.

The variable GPU_TEST_DEVICE names another device, such as `cpu`, on which the tests themselves can be tested; with
GPU_TEST_SMALL few of each kind are left. `make gpu` sets both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
KEPT_OF = 20  # with GPU_TEST_SMALL one parameter set in so many is kept
# Left out then, too: for compiling and training the command has parts of its own, and calibrating takes long.
SLOW = ("test_a_compiled_unet_is_one_graph", "test_calibrated_recipes", "test_recover_ten_steps")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark every test of this folder as `gpu`, and leave out most parameter sets if few are asked for."""
    seen: dict[str, int] = {}
    left_out = []
    for item in items:
        if FOLDER not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        name = f"{item.path}::{getattr(item, 'originalname', item.name)}"
        seen[name] = seen.get(name, -1) + 1
        if os.environ.get("GPU_TEST_SMALL") and (seen[name] % KEPT_OF or item.name.partition("[")[0] in SLOW):
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def device() -> str:
    """The device to test."""
    import torch

    if asked := os.environ.get("GPU_TEST_DEVICE"):
        return asked
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    pytest.skip("needs a CUDA or Apple GPU")


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    """Float32 has all its 24 bits, also in convolutions."""
    import torch

    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value
