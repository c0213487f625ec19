"""Puts this folder on the path, where tests of graphs find `small_graphs`; opens pipelines with stock optimum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def open_stock() -> Callable[[Path], Any]:
    """Opens an ONNX folder with stock optimum on one thread; skips the test where optimum-onnx cannot be imported.

    The number of threads is part of the result: it decides how float32 products are cut into blocks, so in which order
    they are added up. The sums differ by some 1e-6, and where activations have 8 bits a value on the edge between two
    codes then takes the other one, which moves the picture as much as quantization did.
    """
    optimum = pytest.importorskip("optimum.onnxruntime", reason="optimum-onnx cannot be imported", exc_type=ImportError)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return lambda folder: optimum.ORTDiffusionPipeline.from_pretrained(folder, session_options=options)
