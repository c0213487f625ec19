"""Known architectures: pipelines whose configs and tensor shapes are built in, so that no download is needed.

`NAME.json` describes a pipeline and names its components; `components/NAME.json` holds each component's class, config
and tensors (see `shape_tree`), where `extends` lays the file's own content over another component's. The files are
written by `benchmarks/build_catalog.py` from the published configs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sdcompress.errors import InternalError
from sdcompress.sources.catalog.shape_tree import expand, overlay
from sdcompress.sources.source import Source, component_entries, is_buffer, pipeline_class_of
from sdcompress.sources.spec import ComponentSpec, TensorSpec, parameter

FOLDER = Path(__file__).parent
COUNTED_DTYPE = "F16"


@dataclass(frozen=True)
class Entry:
    """A known pipeline: its model_index.json, which component file each part uses, and its small config files."""

    name: str
    title: str
    hub_id: str
    aliases: tuple[str, ...]  # other names and hub ids of the same architecture
    provenance: str  # which of the configs are the published files, which are written from published descriptions
    model_index: Mapping[str, Any]
    components: Mapping[str, str]  # part of the pipeline -> name of a file in components/
    files: Mapping[str, Mapping[str, Any]]  # path in the pipeline's folder -> content
    tokenizers: Mapping[str, Mapping[str, Any]]  # part -> what its tokenizer_config.json needs


def names() -> list[str]:
    """The catalog names, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def find(model: str) -> Entry | None:
    """The entry with this catalog name, alias or hub id, whatever its case; None if there is none."""
    wanted = model.casefold()
    for name in names():
        entry = load_entry(name)
        if wanted in {known.casefold() for known in (name, entry.hub_id, *entry.aliases)}:
            return entry
    return None


@cache
def load_entry(name: str) -> Entry:
    """The entry of exactly this catalog name."""
    content = _read(FOLDER / f"{name}.json")
    return Entry(name=name, aliases=tuple(content.pop("aliases")), **content)


def open_entry(entry: Entry, name: str) -> Source:
    """The entry as a Source called `name`: shapes of every tensor, dtypes taken to be float16."""
    classes = component_entries(entry.model_index)
    pipeline_class = pipeline_class_of(entry.model_index)
    components = {
        part: open_component(file, part, classes[part][0], pipeline_class) for part, file in entry.components.items()
    }
    notes = (f"known architecture {entry.title} ({entry.hub_id}), no weights; bytes are counted at float16",)
    return Source(name, "catalog", entry.model_index, components, hub_id=entry.hub_id, notes=notes)


def open_component(file: str, part: str, library: str, pipeline_class: str = "") -> ComponentSpec:
    """The component described by `components/FILE.json`, as the part `part` of a pipeline."""
    content = component_content(file)
    tensors = {
        tensor: TensorSpec(shape, COUNTED_DTYPE, 0) if is_buffer(tensor) else parameter(shape, COUNTED_DTYPE)
        for tensor, shape in expand(content["tensors"]).items()
    }
    return ComponentSpec(part, library, content["class_name"], content["config"], tensors, pipeline_class)


def component_content(file: str) -> dict[str, Any]:
    """The content of `components/FILE.json` with what it extends: class_name, config and tensors."""
    content = _read(FOLDER / "components" / f"{file}.json")
    base = content.pop("extends", None)
    return overlay(component_content(base), content) if base else content


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InternalError(f"{file}: the catalog is damaged ({error}); install sdcompress again") from None
    return content
