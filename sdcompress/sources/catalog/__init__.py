"""The catalog: pipelines whose configs and tensor shapes come with sdcompress, so that nothing is downloaded.

`NAME.json` describes a pipeline and names the files of its components. `components/NAME.json` holds the class, config
and tensor shapes of a component (see `shape_tree`). With `extends` a file holds what differs from another beside it.
`benchmarks/build_catalog.py` writes the files from the published configs.
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
    """A pipeline of the catalog.

    Attributes:
        name: its name.
        title: its name for people.
        hub_id: its repository on the hub.
        aliases: other names, and hub ids of pipelines of the same architecture.
        provenance: which configs are published files, and which are written from published descriptions.
        model_index: content of model_index.json.
        components: component -> name of a file in `components/`.
        files: path in the pipeline's folder -> content of other configs.
        tokenizers: tokenizer -> fields of its tokenizer_config.json.
    """

    name: str
    title: str
    hub_id: str
    aliases: tuple[str, ...]
    provenance: str
    model_index: Mapping[str, Any]
    components: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]
    tokenizers: Mapping[str, Mapping[str, Any]]


def names() -> list[str]:
    """Return the names in the catalog, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def find(model: str) -> Entry | None:
    """Return the entry with this name, alias or hub id, in upper or lower case; None if there is none.

    Examples:
        >>> find("runwayml/stable-diffusion-v1-5").name
        'sd15'
    """
    wanted = model.casefold()
    for name in names():
        entry = load_entry(name)
        if wanted in {known.casefold() for known in (name, entry.hub_id, *entry.aliases)}:
            return entry
    return None


@cache
def load_entry(name: str) -> Entry:
    """Return the entry with exactly this name."""
    content = _read(FOLDER / f"{name}.json")
    return Entry(name=name, aliases=tuple(content.pop("aliases")), **content)


def open_entry(entry: Entry, name: str) -> Source:
    """Return the pipeline as a source called `name`. Its tensors count as float16."""
    classes = component_entries(entry.model_index)
    pipeline_class = pipeline_class_of(entry.model_index)
    components = {
        component: open_component(file, component, classes[component][0], pipeline_class)
        for component, file in entry.components.items()
    }
    notes = (f"{entry.title} ({entry.hub_id}) from the catalog, no weights; bytes are counted at float16",)
    return Source(name, "catalog", entry.model_index, components, hub_id=entry.hub_id, notes=notes)


def open_component(file: str, name: str, library: str, pipeline_class: str = "") -> ComponentSpec:
    """Return the component that `components/FILE.json` describes, called `name`."""
    content = component_content(file)
    tensors = {
        tensor: TensorSpec(shape, COUNTED_DTYPE, 0) if is_buffer(tensor) else parameter(shape, COUNTED_DTYPE)
        for tensor, shape in expand(content["tensors"]).items()
    }
    return ComponentSpec(name, library, content["class_name"], content["config"], tensors, pipeline_class)


def component_content(file: str) -> dict[str, Any]:
    """Return `class_name`, `config` and `tensors` of `components/FILE.json`."""
    return _read(FOLDER / "components" / f"{file}.json")


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InternalError(f"{file}: the catalog is damaged ({error}); install sdcompress again") from None
    base = content.pop("extends", None)
    return overlay(_read(file.with_name(f"{base}.json")), content) if base else content
