"""Opening torch pipelines: any diffusers folder or artifact, on the device and in the precision asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.errors import ArtifactError, UserError
from sdcompress.sources.single_file.opening import open_linked
from sdcompress.sources.source import ASSETS, BUILT_IN, Source, component_entries

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "float16", "bfloat16")


def open_pipeline(path: str | Path, *, device: str = "auto", dtype: str = "auto", variant: str | None = None) -> Any:
    """The pipeline of a built-in name, a diffusers folder or an artifact, on `device`, ready to be called.

    device: `auto` (CUDA, then Apple's MPS, then the CPU) or a torch device; dtype: `auto` (float32 on a CPU, float16
    elsewhere) or one of DTYPES; variant: weight files such as `fp16`, for the components that have such. Raises
    ArtifactError when it cannot be opened, UserError for a device or dtype that is not there.
    """
    from diffusers import DiffusionPipeline

    folder = ASSETS / str(path) if str(path) in BUILT_IN else Path(path)
    target = choose_device(device)
    precision = choose_dtype(dtype, target)
    try:
        model_index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: is no pipeline ({error})") from None
    linked = open_linked(folder)
    ours: dict[str, Any] = _open_checkpoint(linked, precision) if linked else {}
    if target.type == "cpu":  # where diffusers' own loader of bitsandbytes components refuses to work
        ours |= {
            part: _open_on_cpu(folder / part, *entry, precision)
            for part, entry in _bitsandbytes_parts(folder, model_index).items()
        }
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            str(folder), torch_dtype=precision, variant=variant, local_files_only=True, **ours
        )
        pipeline = pipeline.to(target)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ArtifactError(f"{folder}: cannot be opened as a pipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` prefers CUDA, then MPS, then the CPU. UserError when it is not there."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}; use auto, cpu, cuda or mps") from None
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """float32 on a CPU and float16 elsewhere for `auto`. UserError for a name that is no dtype of DTYPES."""
    import torch

    if name not in DTYPES:
        raise UserError(f"--dtype {name}: use one of {', '.join(DTYPES)}")
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return getattr(torch, name)  # type: ignore[no-any-return]


def _open_checkpoint(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    """The components of a checkpoint, which diffusers would have to convert, read where they lie."""
    import torch

    from sdcompress.backends.torch.source_parts import open_component

    return {part: open_component(source, part, torch.device("cpu"), dtype) for part in source.components}


def _bitsandbytes_parts(folder: Path, model_index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    parts = {}
    for part, entry in component_entries(model_index).items():
        config = folder / part / "config.json"
        if not config.is_file():
            continue
        quantization = json.loads(config.read_text(encoding="utf-8")).get("quantization_config") or {}
        if quantization.get("quant_method") == "bitsandbytes":
            parts[part] = entry
    return parts


def _open_on_cpu(folder: Path, library: str, class_name: str, dtype: torch.dtype) -> Any:
    from sdcompress.backends.torch.bitsandbytes_cpu import open_component

    return open_component(folder, library, class_name, dtype)
