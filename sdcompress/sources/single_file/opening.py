"""Opening a checkpoint file as a diffusers pipeline, from its header alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import TensorRange, read_header
from sdcompress.sources.component_folder import specs_of_ranges
from sdcompress.sources.pickled_file import read_pickled
from sdcompress.sources.quantized_source import scale_in
from sdcompress.sources.single_file.checkpoint_folder import (
    CHECKPOINT_FILE,
    read_checkpoint_folder,
    write_checkpoint_folder,
)
from sdcompress.sources.single_file.conversion import find_component
from sdcompress.sources.single_file.layouts import Layout, detect_layout, is_left_out
from sdcompress.sources.single_file.reference_pipeline import (
    ReferencePipeline,
    find_reference,
    match_input_channels,
    set_prediction_type,
)
from sdcompress.sources.single_file.tokenizers import find_tokenizers
from sdcompress.sources.source import SAFETY_CHECKERS, Source
from sdcompress.sources.spec import ComponentSpec
from sdcompress.sources.weight_files import is_pickle

# Components that a pipeline can do without -> the tokenizer or feature extractor of each.
_OPTIONAL = {
    **dict.fromkeys(SAFETY_CHECKERS, "feature_extractor"),
    "text_encoder_3": "tokenizer_3",
    "image_encoder": "",
}


def open_single_file(
    model: str,
    *,
    like: str | None = None,
    prediction: str | None = None,
    allow_pickle: bool = False,
    fetch: bool = False,
) -> Source:
    """Return the pipeline in a checkpoint file.

    Args:
        model: path of the file.
        like: folder or catalog name of the pipeline whose configs, scheduler and tokenizers it is read with, and whose
            components replace those that the file lacks; None for the catalog's pipeline of the file's layout.
        prediction: `epsilon` or `v_prediction`, where the file does not say which.
        allow_pickle: whether a pickled file is read.
        fetch: whether a missing vocabulary is fetched from the hub. Without it the source has no path.

    Raises:
        SourceError: the file is no pipeline, or its architecture is not that of the configs.
    """
    file = Path(model).expanduser()
    checkpoint = _read_checkpoint(file, allow_pickle)
    layout = detect_layout(file, checkpoint)
    reference = match_input_channels(find_reference(like, layout.entry), checkpoint, file)
    reference, notes = set_prediction_type(reference, checkpoint, prediction, layout.title)
    notes.insert(0, f"a single file in the layout of {layout.title}, read with the configs of {reference.title}")
    reference, components, tensors, remarks = _fill(reference, layout, checkpoint, file)
    notes += remarks
    files = reference.files | {
        f"{name}/config.json": json.dumps(dict(spec.config), indent=2).encode() for name, spec in components.items()
    }
    files["model_index.json"] = json.dumps(reference.model_index, indent=2).encode()
    vocabularies = find_tokenizers(reference.tokenizers, file.absolute().parent, fetch)
    options = {"like": like, "prediction": prediction, "allow_pickle": allow_pickle}
    path = None
    if vocabularies is None:
        notes.append(
            "its tokenizers' vocabularies are not on this machine; compressing fetches them from the hub, or takes "
            "them from the folder that --like names"
        )
    else:
        files |= vocabularies
        path = write_checkpoint_folder(files, _describe_checkpoint(file, options))
    return Source(
        model,
        "single-file",
        reference.model_index,
        components,
        path,
        tensors=tensors,
        other_files=tuple(Path(name) for name in sorted(files)),
        notes=tuple(notes),
        options=options,
    )


def open_checkpoint_folder(folder: Path) -> Source | None:
    """Return the pipeline of a checkpoint from its cached folder; None if `folder` is not in the cache.

    Raises:
        SourceError: the checkpoint file has changed since the folder was written.
    """
    checkpoint = read_checkpoint_folder(folder)
    if checkpoint is None:
        return None
    options = {name: checkpoint[name] for name in ("like", "prediction", "allow_pickle")}
    source = open_single_file(checkpoint["file"], **options)
    if source.path is None or source.path.name != folder.name:
        raise SourceError(
            f"{checkpoint['file']}: has changed since {folder / CHECKPOINT_FILE} was written; open the file again"
        )
    return source


def _read_checkpoint(file: Path, allow_pickle: bool) -> Mapping[str, TensorRange]:
    with file.open("rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
    if is_gguf:
        raise SourceError(
            f"{file}: is a GGUF file, whose weights are quantized already; start from the original weights"
        )
    if is_pickle(file.name):
        return read_pickled(file, allow_pickle)
    if file.suffix != ".safetensors":
        raise SourceError(f"{file}: is no checkpoint (.safetensors, or .ckpt and .pt with --allow-pickle)")
    return read_header(file)


def _fill(
    reference: ReferencePipeline, layout: Layout, checkpoint: Mapping[str, TensorRange], file: Path
) -> tuple[ReferencePipeline, dict[str, ComponentSpec], dict[str, Mapping[str, TensorRange]], list[str]]:
    """Return the reference without what neither it nor the file has, the components, their tensors, and remarks."""
    components: dict[str, ComponentSpec] = {}
    tensors: dict[str, Mapping[str, TensorRange]] = {}
    notes: list[str] = []
    used: set[str] = set()
    lacking: list[str] = []
    for name, spec in reference.components.items():
        found = find_component(spec, layout.components[name], checkpoint) if name in layout.components else None
        if found is not None:
            if found.problem is not None:
                raise SourceError(
                    f"{file}: {found.problem}, so its {name} is not that of {reference.title}; name the diffusers "
                    f"folder of a pipeline with the same configs with --like"
                )
            components[name] = spec.replace(tensors=specs_of_ranges(found.ranges))
            tensors[name] = found.ranges
            used |= found.names
        elif name in reference.tensors:
            components[name], tensors[name] = spec, reference.tensors[name]
            notes.append(f"the file has no {name}: it is that of {reference.title}")
        elif name in _OPTIONAL:
            reference = reference.without(name, _OPTIONAL[name])
            notes.append(f"the file has no {name}: the pipeline does without")
        else:
            lacking.append(name)
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
    return reference, components, tensors, notes


def _describe_checkpoint(file: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what checkpoint.json says of the file, by which a changed file is recognised."""
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
