"""A checkpoint file as the Source of a diffusers pipeline, from its header alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import TensorRange, read_header
from sdcompress.sources.quantized_source import scale_in
from sdcompress.sources.single_file.conversion import find_component
from sdcompress.sources.single_file.layouts import Layout, detect_layout, is_left_out
from sdcompress.sources.single_file.linked_folder import LINK, read_link, write_link
from sdcompress.sources.single_file.templates import Template, find_template
from sdcompress.sources.single_file.tokenizers import find_tokenizers
from sdcompress.sources.single_file.variations import with_channels, with_prediction
from sdcompress.sources.source import SAFETY_CHECKERS, Source, specs_of_ranges
from sdcompress.sources.spec import ComponentSpec
from sdcompress.sources.weight_files import is_pickle

# Parts a pipeline draws without -> the tokenizer that goes with them.
_OPTIONAL = {
    **dict.fromkeys(SAFETY_CHECKERS, "feature_extractor"),
    "text_encoder_3": "tokenizer_3",
    "image_encoder": "",
}

Tensors = dict[str, Mapping[str, TensorRange]]


def open_single_file(
    model: str,
    *,
    like: str | None = None,
    prediction: str | None = None,
    allow_pickle: bool = False,
    fetch: bool = False,
) -> Source:
    """The checkpoint `model` as a Source.

    like: the folder or catalog name of the pipeline whose configs, scheduler and tokenizers it is read with (None: the
    catalog's for its layout); what the checkpoint lacks is taken from there too. prediction: `epsilon` or
    `v_prediction`, when the file does not say. fetch: whether a missing vocabulary is asked of the hub; without it the
    Source has no path. Raises SourceError when the file is no pipeline, or of another architecture than its template.
    """
    file = Path(model).expanduser()
    checkpoint = read_checkpoint(file, allow_pickle)
    layout = detect_layout(file, checkpoint)
    template = with_channels(find_template(like, layout.entry), checkpoint, file)
    template, notes = with_prediction(template, checkpoint, prediction, layout.title)
    notes.insert(0, f"a single file in the layout of {layout.title}, read with the configs of {template.title}")
    template, components, tensors = _fill(template, layout, checkpoint, file, notes)
    files = template.files | {
        f"{part}/config.json": json.dumps(dict(spec.config), indent=2).encode() for part, spec in components.items()
    }
    files["model_index.json"] = json.dumps(template.model_index, indent=2).encode()
    vocabularies = find_tokenizers(template.tokenizers, file.absolute().parent, fetch)
    options = {"like": like, "prediction": prediction, "allow_pickle": allow_pickle}
    path = None
    if vocabularies is None:
        notes.append(
            "its tokenizers' vocabularies are not on this machine; compressing fetches them from the hub, or takes "
            "them from the folder that --like names"
        )
    else:
        files |= vocabularies
        path = write_link(files, _link(file, options))
    return Source(
        model,
        "single-file",
        template.model_index,
        components,
        path,
        tensors=tensors,
        other_files=tuple(Path(name) for name in sorted(files)),
        notes=tuple(notes),
        options=options,
    )


def open_linked(folder: Path) -> Source | None:
    """The Source that a folder in the cache stands for; None for any other folder. SourceError if its file changed."""
    link = read_link(folder)
    if link is None:
        return None
    options = {name: link[name] for name in ("like", "prediction", "allow_pickle")}
    source = open_single_file(link["file"], **options)
    if source.path is None or source.path.name != folder.name:
        raise SourceError(f"{link['file']}: is another file than {folder / LINK} was written for; open the file anew")
    return source


def read_checkpoint(file: Path, allow_pickle: bool) -> Mapping[str, TensorRange]:
    """Name -> range of every tensor of a safetensors file or, if they are allowed, a pickled one."""
    with file.open("rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
    if is_gguf:
        raise SourceError(
            f"{file}: is a GGUF file, whose weights are quantized already; start from the original weights"
        )
    if is_pickle(file.name):
        from sdcompress.sources.pickled_file import read_pickled

        return read_pickled(file, allow_pickle)
    if file.suffix != ".safetensors":
        raise SourceError(f"{file}: is no checkpoint (.safetensors, or .ckpt and .pt with --allow-pickle)")
    return read_header(file)


def _fill(
    template: Template, layout: Layout, checkpoint: Mapping[str, TensorRange], file: Path, notes: list[str]
) -> tuple[Template, dict[str, ComponentSpec], Tensors]:
    """The template without what is in neither, its components as they are in the file, and where their tensors lie."""
    components: dict[str, ComponentSpec] = {}
    tensors: Tensors = {}
    used: set[str] = set()
    lacking: list[str] = []
    for part, spec in template.components.items():
        found = find_component(spec, layout.parts[part], checkpoint) if part in layout.parts else None
        if found is not None:
            if found.problem is not None:
                raise SourceError(
                    f"{file}: {found.problem}, so its {part} is not that of {template.title}; name the diffusers "
                    f"folder of a pipeline with the same configs with --like"
                )
            components[part] = spec.replace(tensors=specs_of_ranges(found.ranges))
            tensors[part] = found.ranges
            used |= found.names
        elif part in template.tensors:
            components[part], tensors[part] = spec, template.tensors[part]
            notes.append(f"the file has no {part}: it is that of {template.title}")
        elif part in _OPTIONAL:
            template = template.without(part, _OPTIONAL[part])
            notes.append(f"the file has no {part}: the pipeline does without")
        else:
            lacking.append(part)
    if lacking:
        raise SourceError(
            f"{file}: has no {' and no '.join(lacking)}; name a diffusers folder that has the weights with --like"
        )
    unused = sorted(name for name in checkpoint if name not in used and not is_left_out(name))
    scale = scale_in(unused)
    if scale is not None:
        raise SourceError(
            f"{file}: is quantized already, and its scales ({scale}) have no place in a diffusers folder; start from "
            f"the original weights"
        )
    if unused:
        notes.append(f"{len(unused)} of the file's tensors belong to none of these components, such as {unused[0]}")
    return template, components, tensors


def _link(file: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    stat = file.stat()
    like = options["like"]
    if like is not None and Path(like).expanduser().is_dir():
        like = str(Path(like).expanduser().resolve())
    return {
        **options,
        "like": like,
        "file": str(file.resolve()),
        "size_bytes": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
    }
