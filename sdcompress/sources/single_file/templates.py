"""What a checkpoint leaves unsaid: configs, scheduler and tokenizers, from the catalog or from a pipeline's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError, nearest
from sdcompress.files.safetensors_file import TensorRange
from sdcompress.sources import catalog
from sdcompress.sources.portable_parts import portable_folder
from sdcompress.sources.single_file.tokenizers import FACTS
from sdcompress.sources.source import (
    ASSETS,
    BUILT_IN,
    component_entries,
    component_ranges,
    has_weights,
    pipeline_class_of,
    read_json,
    specs_of_ranges,
)
from sdcompress.sources.spec import ComponentSpec, TensorSpec, parameter
from sdcompress.sources.tensor_names import canonical_name
from sdcompress.sources.weight_files import is_weight_file

SCHEDULER = "scheduler/scheduler_config.json"
_SAFETY = ("safety_checker", "feature_extractor")  # no checkpoint holds the checker


@dataclass(frozen=True)
class Template:
    """A pipeline to fill with a checkpoint's tensors: shapes, small files, and the weights it has itself."""

    title: str
    model_index: dict[str, Any]
    components: dict[str, ComponentSpec]
    files: dict[str, bytes]  # path in the pipeline's folder -> content
    tokenizers: FACTS = field(default_factory=dict)  # those whose vocabulary has to be found
    tensors: Mapping[str, Mapping[str, TensorRange]] = field(default_factory=dict)
    is_known: bool = False  # from the catalog, so that it may be bent to what the checkpoint says

    def without(self, *parts: str) -> Template:
        """The template with these parts marked absent."""
        parts = tuple(part for part in parts if part in self.model_index)
        return Template(
            self.title,
            {**self.model_index, **{part: [None, None] for part in parts}},
            {part: spec for part, spec in self.components.items() if part not in parts},
            {path: content for path, content in self.files.items() if path.split("/")[0] not in parts},
            {part: fact for part, fact in self.tokenizers.items() if part not in parts},
            {part: ranges for part, ranges in self.tensors.items() if part not in parts},
            self.is_known,
        )


def find_template(like: str | None, entry: str) -> Template:
    """The template called `like`: a folder, a built-in or catalog name; None for the catalog's `entry`."""
    if like is None:
        return _of_entry(catalog.load_entry(entry))
    path = ASSETS / like if like in BUILT_IN else Path(like).expanduser()
    if path.is_dir():
        return _of_folder(path)
    found = catalog.find(like)
    if found is None:
        known = nearest(like, (*BUILT_IN, *catalog.names()))
        raise SourceError(f"--like {like}: no such folder, and no name sdcompress knows; {known}")
    return _of_entry(found)


def _of_entry(entry: catalog.Entry) -> Template:
    source = catalog.open_entry(entry, entry.name)
    files = {path: json.dumps(content, indent=2).encode() for path, content in entry.files.items()}
    template = Template(
        entry.title, dict(entry.model_index), dict(source.components), files, entry.tokenizers, is_known=True
    )
    template = template.without(*_SAFETY)
    if "safety_checker" in template.model_index:
        template.model_index["requires_safety_checker"] = False
    return template


def _of_folder(path: Path) -> Template:
    model_index = read_json(path / "model_index.json", missing=f"--like {path}: is no pipeline (no model_index.json)")
    components: dict[str, ComponentSpec] = {}
    tensors: dict[str, Mapping[str, TensorRange]] = {}
    files: dict[str, bytes] = {}
    names_in: dict[str, list[str]] = {}
    for part, (library, class_name) in component_entries(model_index).items():
        folder = path / part
        names_in[part] = [file.name for file in folder.rglob("*")]
        for file in sorted(folder.rglob("*")):
            if file.is_file() and not is_weight_file(file.name):
                files[file.relative_to(path).as_posix()] = file.read_bytes()
        if not (folder / "config.json").is_file() or part.startswith("tokenizer"):
            continue
        config = read_json(folder / "config.json", missing=str(folder))
        spec = ComponentSpec(part, library, class_name, config, {}, pipeline_class_of(model_index))
        if has_weights(folder):
            ranges = component_ranges(folder, None) or {}
            tensors[part] = {canonical_name(class_name, name): where for name, where in ranges.items()}
            components[part] = spec.replace(tensors=specs_of_ranges(tensors[part]))
        else:
            components[part] = spec.replace(tensors=_tensors_of_class(spec))
    if not components:
        raise SourceError(f"--like {path}: has no component with a config.json; give the folder of a pipeline")
    model_index, changed = portable_folder(model_index, names_in, files.__getitem__)
    changed.pop("model_index.json", None)  # which the checkpoint's own is made of
    return Template(str(path), model_index, components, files | changed, tensors=tensors)


def _tensors_of_class(spec: ComponentSpec) -> dict[str, TensorSpec]:
    """The tensors a component of that config has, asked of its class."""
    from sdcompress.sources.empty_model import empty_model

    state = empty_model(spec).state_dict()
    return {
        canonical_name(spec.class_name, name): parameter(tuple(tensor.shape), catalog.COUNTED_DTYPE)
        for name, tensor in state.items()
    }
