"""Opening pipelines: any diffusers folder, checkpoint, artifact, ONNX or OpenVINO folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdcompress.errors import UserError
from sdcompress.sources.onnx_file import is_onnx_folder
from sdcompress.sources.openvino_file import is_openvino_folder
from sdcompress.sources.source import ASSETS, BUILT_IN

DEVICES = "auto, cpu, cuda or mps; ONNX folders also directml or openvino; OpenVINO folders cpu, gpu or npu"


def open_pipeline(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    low_memory: bool = False,
    variant: str | None = None,
    **options: Any,
) -> Any:
    """Return the diffusers pipeline of a built-in name, a folder, an artifact or a checkpoint file, ready to be called.

    Args:
        device: `auto`, or one of DEVICES.
        dtype: `auto` (float32 on a CPU, float16 elsewhere), float32, float16 or bfloat16. For an ONNX folder `auto`
            alone, since its files have a fixed precision. An OpenVINO folder computes in float32 with `auto`.
        threads: threads on the CPU, for the whole process; None keeps torch's number.
        low_memory: keep at most one component of an ONNX or OpenVINO folder in memory.
        variant: of the weight files, such as `fp16`.
        options: for checkpoint files: `allow_pickle`, `like`, `prediction`, as `open_source` takes them.

    Raises:
        ArtifactError: the pipeline cannot be opened.
        UserError: a path, a device or a package is missing, or an argument does not fit the kind of pipeline.
    """
    if Path(path).is_file():
        from sdcompress.sources.opening import open_source, with_weights

        source = with_weights(open_source(str(path), variant, **options))
        assert source.path is not None
        return open_pipeline(source.path, device=device, dtype=dtype, threads=threads, low_memory=low_memory)
    if options:
        raise UserError(f"{', '.join(options)}: only for checkpoint files, and {path} is not one; leave it out")
    folder = ASSETS / str(path) if str(path) in BUILT_IN else Path(path)
    onnx, openvino = is_onnx_folder(folder), is_openvino_folder(folder)
    if low_memory and not (onnx or openvino):
        raise UserError(
            f"--low-memory: {path} is a torch pipeline; only ONNX and OpenVINO folders open component by component"
        )
    if onnx and dtype != "auto":
        raise UserError(
            f"--dtype {dtype}: {path} is an ONNX pipeline, whose precision is in its files; leave --dtype out, or "
            f"compress with a recipe for {dtype}"
        )
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if openvino:
        from sdcompress.backends.openvino.runtime import open_openvino_pipeline

        return open_openvino_pipeline(folder, device, dtype, threads, low_memory)
    if onnx:
        from sdcompress.backends.onnx.loading import open_onnx_pipeline

        return open_onnx_pipeline(folder, device, threads, low_memory)
    from sdcompress.backends.torch import loading

    return loading.open_pipeline(folder, device=device, dtype=dtype, variant=variant)
