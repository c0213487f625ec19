"""Opening OpenVINO folders as the stock diffusers pipelines they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from sdcompress.backends.onnx.loading import open_graphs
from sdcompress.backends.openvino.runtime import choose_openvino_runtime


def open_openvino_pipeline(
    folder: Path, device: str = "auto", dtype: str = "auto", threads: int | None = None, low_memory: bool = False
) -> Any:
    """Return the stock diffusers pipeline of an OpenVINO folder, ready to be called.

    Args:
        device, dtype, threads, low_memory: see `choose_openvino_runtime`.

    Raises:
        ArtifactError: the folder cannot be opened.
        UserError: the device is missing.
    """
    runtime = choose_openvino_runtime(device, dtype, threads, low_memory)
    return open_graphs(folder, cast("Any", runtime))  # it has all that components use of a Runtime
