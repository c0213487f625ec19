"""Opening a pipeline by its name: the one module that imports the readers of each kind of source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import TensorRange
from sdcompress.sources.portable_parts import portable_folder
from sdcompress.sources.source import (
    ASSETS,
    BUILT_IN,
    Source,
    component_entries,
    component_ranges,
    counted_parameters,
    pipeline_class_of,
    read_json,
    specs_of_ranges,
    with_counts,
)
from sdcompress.sources.spec import ComponentSpec
from sdcompress.sources.tensor_names import canonical_name
from sdcompress.sources.weight_files import is_weight_file, variant_of


def open_source(
    model: str,
    variant: str | None = None,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    like: str | None = None,
    prediction: str | None = None,
) -> Source:
    """The pipeline `model` names: a built-in name, a diffusers folder, a checkpoint file, a catalog name or a hub id.

    Reads configs and safetensors headers only. variant: weight files such as `fp16`. revision: of a hub id, also
    written `org/name@revision`. allow_pickle: also read pickled weights, with torch's weights_only unpickler. like,
    prediction: see `single_file.opening.open_single_file`. Raises SourceError when there is no such model or it is not
    whole.
    """
    path = Path(model).expanduser()
    if path.is_file():
        _check_options(model, "a checkpoint file", variant=variant, revision=revision)
        from sdcompress.sources.single_file.opening import open_single_file

        return open_single_file(model, like=like, prediction=prediction, allow_pickle=allow_pickle)
    if model in BUILT_IN or path.is_dir():
        _check_options(model, "a folder", revision=revision, like=like, prediction=prediction)
        if model in BUILT_IN:
            return open_folder(ASSETS / model, name=model, kind="built-in", variant=variant)
        return open_folder(path, variant=variant, allow_pickle=allow_pickle)
    from sdcompress.sources import catalog

    entry = catalog.find(model)
    if entry is not None and revision is None:
        _check_options(model, "a catalog name", like=like, prediction=prediction)
        return catalog.open_entry(entry, name=model)
    hub_id = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", model)
    if hub_id and not model.startswith(".") and not is_weight_file(model):
        _check_options(model, "a hub id", like=like, prediction=prediction)
        if hub_id[2] and revision not in (None, hub_id[2]):
            raise SourceError(f"{model}: has the revision {hub_id[2]} already; leave out --revision {revision}")
        from sdcompress.sources.hub import open_hub

        return open_hub(hub_id[1], variant, revision or hub_id[2], allow_pickle)
    file_on_hub = re.fullmatch(r"(?:hf://)?([\w.-]+/[\w.-]+)/([\w./-]+)", model)
    if file_on_hub and is_weight_file(model) and not model.startswith((".", "/")):
        raise SourceError(
            f"{model}: no such file; if it is one on the hub, download it (`hf download {file_on_hub[1]} "
            f"{file_on_hub[2]} --local-dir .`) and give the file"
        )
    known = ", ".join((*BUILT_IN, *catalog.names()))
    raise SourceError(
        f"{model}: no such folder or file, and no name sdcompress knows; give a diffusers folder, a .safetensors "
        f"checkpoint, a hub id (org/name), or one of: {known}"
    )


def _check_options(model: str, what: str, **given: str | None) -> None:
    """Raises SourceError for the first of these options that is given: they mean nothing for `what`."""
    for option, value in given.items():
        if value is not None:
            raise SourceError(f"--{option} {value}: means nothing for {what} such as {model}; leave it out")


def open_folder(
    path: Path,
    name: str | None = None,
    kind: Literal["built-in", "folder", "hub"] = "folder",
    variant: str | None = None,
    hub_id: str | None = None,
    allow_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """The diffusers folder `path` as a Source; `variant` picks files such as `model.fp16.safetensors`.

    allow_pickle: whether components without safetensors are read from pickles. options: what the Source keeps as such.
    """
    from sdcompress.sources.single_file.opening import open_linked

    linked = open_linked(path)
    if linked is not None:
        return linked
    missing = f"{path}: is no pipeline (it has no model_index.json); give the folder that save_pretrained wrote"
    model_index = read_json(path / "model_index.json", missing=missing)
    from sdcompress.sources.onnx_file import is_onnx_folder, open_onnx_folder
    from sdcompress.sources.openvino_file import is_openvino_folder, open_openvino_folder

    if is_onnx_folder(path):
        return open_onnx_folder(path, name or str(path), kind, hub_id)
    if is_openvino_folder(path):
        return open_openvino_folder(path, name or str(path), kind, hub_id)
    components: dict[str, ComponentSpec] = {}
    tensors: dict[str, Mapping[str, TensorRange]] = {}
    variants: set[str] = set()
    counted = counted_parameters(path)
    other_files = [Path("model_index.json")]
    other_files += [Path(file.name) for file in sorted(path.glob("LICENSE*")) if file.is_file()]
    names_in: dict[str, list[str]] = {}
    for part, (library, class_name) in component_entries(model_index).items():
        folder = path / part
        if not folder.is_dir():
            raise SourceError(
                f"{folder}: missing, though model_index.json lists {part} ({class_name}); download it, or write "
                f"[null, null] for it in model_index.json"
            )
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names_in[part] = [file.name for file in files]
        # Nothing in a component's folder is dropped but weights in other formats and variants.
        kept = (file for file in files if not is_weight_file(file.name))
        other_files += [file.relative_to(path) for file in kept]
        ranges = component_ranges(folder, variant, allow_pickle)
        if ranges is None:
            continue
        config = read_json(folder / "config.json", missing=f"{folder}: has weights but no config.json; download it")
        variants |= {variant_of(where.file.name) for where in ranges.values()} - {""}
        ranges = {canonical_name(class_name, tensor): where for tensor, where in ranges.items()}
        specs = specs_of_ranges(ranges)
        if part in counted:
            counts = {canonical_name(class_name, tensor): count for tensor, count in counted[part].items()}
            specs = with_counts(specs, counts)
        components[part] = ComponentSpec(part, library, class_name, config, specs, pipeline_class_of(model_index))
        tensors[part] = ranges
    if not components:
        raise SourceError(f"{path}: is no pipeline sdcompress can work on (no component has safetensors weights)")
    given = {**(options or {}), "allow_pickle": allow_pickle}
    if variants:  # asked for, or the only one there is: whoever opens the folder has to name it
        given["variant"] = variant if variant in variants else min(variants)
    model_index, changed = portable_folder(model_index, names_in, lambda file: (path / file).read_bytes())
    return Source(
        name or str(path),
        kind,
        model_index,
        components,
        path,
        hub_id,
        tensors,
        tuple(other_files),
        changed_files={Path(file): content for file, content in changed.items()},
        options=given,
    )
