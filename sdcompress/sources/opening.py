"""Opening a pipeline by any name: the one module that imports the readers of every kind of source."""

from __future__ import annotations

import re
from pathlib import Path

from sdcompress.errors import SourceError
from sdcompress.sources import catalog
from sdcompress.sources.folder import open_folder
from sdcompress.sources.hub import open_downloaded, open_hub
from sdcompress.sources.single_file.opening import open_single_file
from sdcompress.sources.source import ASSETS, BUILT_IN, Source
from sdcompress.sources.weight_files import is_weight_file


def open_source(
    model: str,
    variant: str | None = None,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    like: str | None = None,
    prediction: str | None = None,
) -> Source:
    """Return what a pipeline consists of. Only configs and the headers of weight files are read.

    Args:
        model: a built-in name (`tiny-sd`), a name of the catalog (`sd15`), a diffusers folder, a checkpoint file, or a
            hub id (`org/name`, or `org/name@revision`).
        variant: which weight files to read, such as `fp16`; of folders and hub ids.
        revision: branch, tag or commit of a hub id.
        allow_pickle: whether pickled weights are read too, by torch's unpickler for weights, which runs no code.
        like: folder or catalog name of the pipeline whose configs, scheduler and tokenizers a checkpoint file gets.
        prediction: `epsilon` or `v_prediction`, where a checkpoint file does not say which.

    Raises:
        SourceError: there is no such pipeline, it is incomplete or damaged, or an option does not apply to it.

    Examples:
        >>> sorted(open_source("tiny-sd").components)
        ['safety_checker', 'text_encoder', 'unet', 'vae']
    """
    path = Path(model).expanduser()
    if path.is_file():
        _refuse("a checkpoint file", model, variant=variant, revision=revision)
        return open_single_file(model, like=like, prediction=prediction, allow_pickle=allow_pickle)
    if model in BUILT_IN or path.is_dir():
        _refuse("a folder", model, revision=revision, like=like, prediction=prediction)
        if model in BUILT_IN:
            return open_folder(ASSETS / model, name=model, kind="built-in", variant=variant)
        return open_folder(path, variant=variant, allow_pickle=allow_pickle)
    entry = catalog.find(model)
    if entry is not None and revision is None:
        _refuse("a catalog name", model, like=like, prediction=prediction)
        return catalog.open_entry(entry, name=model)
    hub_id = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", model)
    if hub_id and not model.startswith(".") and not is_weight_file(model):
        _refuse("a hub id", model, like=like, prediction=prediction)
        if hub_id[2] and revision not in (None, hub_id[2]):
            raise SourceError(f"{model}: has the revision {hub_id[2]} already; leave out --revision {revision}")
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


def with_weights(source: Source) -> Source:
    """Return the source with everything it needs on this machine.

    Weights of a hub pipeline are downloaded, in the variant and revision in which it was opened; so are the tokenizers'
    vocabularies of a checkpoint file. Other sources are returned as they are.

    Raises:
        SourceError: the source is a name of the catalog without a hub id, or the hub cannot be reached.
    """
    if source.path is not None:
        return source
    if source.kind == "single-file":
        return open_single_file(source.name, **source.options, fetch=True)
    if source.hub_id is None:
        raise SourceError(f"{source.name}: has no weights and no hub id to fetch them from; give a folder")
    return open_downloaded(source.name, source.hub_id, **source.options)


def _refuse(kind: str, model: str, **options: str | None) -> None:
    """Raise SourceError for the first of the options that is given: none applies to this kind of model."""
    for option, value in options.items():
        if value is not None:
            raise SourceError(f"--{option} {value}: does not apply to {kind} such as {model}; leave it out")
