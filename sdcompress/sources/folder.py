"""Opening a pipeline's folder: safetensors, ONNX, OpenVINO, or the cached folder of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import TensorRange
from sdcompress.sources.component_folder import (
    component_ranges,
    counted_parameters,
    read_json,
    small_files,
    specs_of_ranges,
)
from sdcompress.sources.onnx_file import is_onnx_folder, open_onnx_folder
from sdcompress.sources.openvino_file import is_openvino_folder, open_openvino_folder
from sdcompress.sources.portable_parts import portable_folder
from sdcompress.sources.single_file.opening import open_checkpoint_folder
from sdcompress.sources.source import Kind, Source, component_entries, pipeline_class_of
from sdcompress.sources.spec import ComponentSpec
from sdcompress.sources.tensor_names import canonical_name
from sdcompress.sources.weight_files import variant_of


def open_folder(
    path: Path,
    name: str | None = None,
    kind: Kind = "folder",
    variant: str | None = None,
    hub_id: str | None = None,
    allow_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """Return the pipeline in a folder that `save_pretrained` or sdcompress wrote.

    Args:
        path: the folder.
        name: name of the source; by default the path.
        kind: kind of the source.
        variant: which weight files to read, such as `fp16` for `model.fp16.safetensors`.
        hub_id: the repository on the hub that the folder is a copy of.
        allow_pickle: whether components without safetensors are read from pickles.
        options: further options to keep in the source.

    Raises:
        SourceError: the folder holds no pipeline, or files are missing or damaged.

    Examples:
        >>> from sdcompress.sources.source import ASSETS
        >>> open_folder(ASSETS / "tiny-sd").pipeline_class
        'StableDiffusionPipeline'
    """
    checkpoint = open_checkpoint_folder(path)
    if checkpoint is not None:
        return checkpoint
    missing = f"{path}: is no pipeline (it has no model_index.json); give the folder that save_pretrained wrote"
    model_index = read_json(path / "model_index.json", missing=missing)
    if is_onnx_folder(path):
        return open_onnx_folder(path, name or str(path), kind, hub_id)
    if is_openvino_folder(path):
        return open_openvino_folder(path, name or str(path), kind, hub_id)
    components: dict[str, ComponentSpec] = {}
    tensors: dict[str, Mapping[str, TensorRange]] = {}
    variants: set[str] = set()
    names_in: dict[str, list[str]] = {}
    counted = counted_parameters(path)
    entries = component_entries(model_index)
    for component, (library, class_name) in entries.items():
        folder = path / component
        if not folder.is_dir():
            raise SourceError(
                f"{folder}: missing, though model_index.json lists {component} ({class_name}); download it, or write "
                f"[null, null] for it in model_index.json"
            )
        names_in[component] = [file.name for file in folder.rglob("*") if file.is_file()]
        ranges = component_ranges(folder, class_name, variant, allow_pickle)
        if ranges is None:
            continue
        config = read_json(folder / "config.json", missing=f"{folder}: has weights but no config.json; download it")
        variants |= {variant_of(where.file.name) for where in ranges.values()} - {""}
        counts = {canonical_name(class_name, name): count for name, count in counted.get(component, {}).items()}
        specs = specs_of_ranges(ranges, counts)
        pipeline_class = pipeline_class_of(model_index)
        components[component] = ComponentSpec(component, library, class_name, config, specs, pipeline_class)
        tensors[component] = ranges
    if not components:
        raise SourceError(f"{path}: is no pipeline sdcompress can work on (no component has safetensors weights)")
    kept = {**(options or {}), "allow_pickle": allow_pickle}
    if variants:  # asked for, or the only one: loaders need its name
        kept["variant"] = variant if variant in variants else min(variants)
    model_index, changed = portable_folder(model_index, names_in, lambda file: (path / file).read_bytes())
    return Source(
        name or str(path),
        kind,
        model_index,
        components,
        path,
        hub_id,
        tensors,
        tuple(small_files(path, [path / component for component in entries])),
        changed_files={Path(file): content for file, content in changed.items()},
        options=kept,
    )
