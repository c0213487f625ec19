"""Opening torch pipelines: diffusers folders, checkpoint folders and artifacts, on a device and in a precision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcompress.backends.small_parts import as_portable, explaining
from sdcompress.errors import ArtifactError, UserError
from sdcompress.sources.component_folder import has_weights, read_json, stored_ranges
from sdcompress.sources.folder import open_folder
from sdcompress.sources.pruned_config import is_quantized
from sdcompress.sources.single_file.opening import open_checkpoint_folder
from sdcompress.sources.source import ASSETS, BUILT_IN, Source, component_entries
from sdcompress.sources.tensor_names import MISSING_LEVELS, canonical_name, name_in_model

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "float16", "bfloat16")


def open_pipeline(path: str | Path, *, device: str = "auto", dtype: str = "auto", variant: str | None = None) -> Any:
    """Return the pipeline of a built-in name, a diffusers folder or an artifact, ready to be called.

    Args:
        device: `auto` (CUDA, then Apple's MPS, then the CPU) or a torch device.
        dtype: `auto` (float32 on a CPU, float16 elsewhere) or another of DTYPES.
        variant: of the weight files, such as `fp16`, for the components that have it.

    Raises:
        ArtifactError: the pipeline cannot be opened.
        UserError: the device is missing, or there is no such dtype.
    """
    from diffusers import DiffusionPipeline

    folder = ASSETS / str(path) if str(path) in BUILT_IN else Path(path)
    target = choose_device(device)
    precision = choose_dtype(dtype, target)
    try:
        model_index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: is not a pipeline ({error})") from None
    linked = open_checkpoint_folder(folder)
    ours: dict[str, Any] = _open_checkpoint(linked, precision) if linked else {}
    if target.type == "cpu":  # diffusers' loader of bitsandbytes components needs a GPU
        ours |= {
            part: _open_on_cpu(folder / part, *entry, precision)
            for part, entry in _bitsandbytes_parts(folder, model_index).items()
        }
    entries = component_entries(model_index)
    for part in _unknown_names(folder, {part: entry for part, entry in entries.items() if part not in ours}, variant):
        ours[part] = _open_renamed(folder, part, variant, precision)
    with explaining(ArtifactError, f"{folder}: cannot be opened as a pipeline"):
        with as_portable(folder) as portable:
            pipeline = DiffusionPipeline.from_pretrained(
                str(portable), torch_dtype=precision, variant=variant, local_files_only=True, **ours
            )
        pipeline.register_to_config(_name_or_path=str(folder))
        pipeline = pipeline.to(target)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def choose_device(name: str) -> torch.device:
    """Return the torch device; `auto` prefers CUDA, then MPS, then the CPU. UserError if it is missing."""
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
    """Return the torch dtype; `auto` is float32 on a CPU and float16 elsewhere. UserError if it is not in DTYPES."""
    import torch

    if name not in DTYPES:
        raise UserError(f"--dtype {name}: use one of {', '.join(DTYPES)}")
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return getattr(torch, name)  # type: ignore[no-any-return]


def _open_checkpoint(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    """Return the components of a checkpoint, without the conversion that diffusers would do."""
    import torch

    from sdcompress.backends.torch.source_parts import open_component

    return {part: open_component(source, part, torch.device("cpu"), dtype) for part in source.components}


def _unknown_names(folder: Path, entries: Mapping[str, tuple[str, str]], variant: str | None) -> list[str]:
    """Return the components whose files have names of tensors that the installed transformers does not know.

    Args:
        entries: component -> library and class.
    """
    from sdcompress.sources.empty_model import empty_model

    unknown = []
    for part, (library, class_name) in entries.items():
        if class_name not in MISSING_LEVELS or not (folder / part).is_dir() or not has_weights(folder / part):
            continue
        stored = stored_ranges(folder / part, variant) or {}
        renamed = [name for name in stored if canonical_name(class_name, name) != name]
        if renamed:
            config = read_json(folder / part / "config.json", missing=f"{folder / part}: has no config.json")
            model = empty_model(library, class_name, config)
            if name_in_model(model, renamed[0].rpartition(".")[0]) is None:
                unknown.append(part)
    return unknown


def _open_renamed(folder: Path, part: str, variant: str | None, dtype: torch.dtype) -> Any:
    """Return the component whose files have names of a later transformers. ArtifactError if it is quantized."""
    import torch
    import transformers

    from sdcompress.backends.torch.source_parts import open_component

    source = open_folder(folder, variant=variant)
    if is_quantized(source.components[part].config):
        raise ArtifactError(
            f"{folder / part}: has tensor names that transformers {transformers.__version__} does not know; "
            f"update transformers, or compress the original again"
        )
    return open_component(source, part, torch.device("cpu"), dtype)


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
