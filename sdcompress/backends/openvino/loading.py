"""Opening OpenVINO folders as the stock diffusers pipelines they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from sdcompress.backends.onnx.loading import open_graphs
from sdcompress.backends.openvino.runtime import choose_openvino_runtime


def open_openvino_pipeline(
    folder: Path, device: str = "auto", dtype: str = "auto", threads: int | None = None, low_memory: bool = False
) -> Any:
    """The stock diffusers pipeline of model_index.json, its components computed by OpenVINO, ready to be called.

    device, dtype, threads: as `choose_openvino_runtime` takes them. low_memory: at most one component is compiled at a
    time. Raises ArtifactError for a folder that cannot be opened, UserError for a device that is not there.
    """
    runtime = choose_openvino_runtime(device, dtype, threads, low_memory)
    return open_graphs(folder, cast("Any", runtime))  # which has all of Runtime that stand-ins use
