"""Pipelines on the Hugging Face Hub: opened from configs and safetensors headers, downloaded for their weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import TensorRange
from sdcompress.sources.component_folder import specs_of_ranges
from sdcompress.sources.folder import open_folder
from sdcompress.sources.hub_requests import TIMEOUT_S, Repository, explained_errors, is_offline, list_repository
from sdcompress.sources.source import Source, component_entries, pipeline_class_of
from sdcompress.sources.spec import ComponentSpec
from sdcompress.sources.tensor_names import canonical_name
from sdcompress.sources.weight_files import is_pickle, is_shard_index, is_weight_file

CONNECTIONS = 8


def open_hub(
    hub_id: str, variant: str | None = None, revision: str | None = None, allow_pickle: bool = False
) -> Source:
    """Return a pipeline on the hub. Its configs and safetensors headers are fetched, its weights are not.

    Pickled weights have no header: where `allow_pickle` allows them and there are no others, they are downloaded.
    With HF_HUB_OFFLINE=1 everything is read from the local cache.

    Args:
        hub_id: the repository, `org/name`.
        variant: which weight files to read, such as `fp16`.
        revision: branch, tag or commit; None for the main branch.
        allow_pickle: whether pickled weights are read too.

    Raises:
        SourceError: the pipeline cannot be reached or is incomplete; the message says why.
    """
    name = f"{hub_id}@{revision}" if revision else hub_id
    options: dict[str, Any] = {"variant": variant, "revision": revision, "allow_pickle": allow_pickle}
    if is_offline():
        return open_downloaded(name, hub_id, **options)
    with explained_errors(hub_id, revision):
        repository = list_repository(hub_id, revision, allow_pickle)
        entries = component_entries(repository.model_index)
        if any(is_pickle(file) for component in entries for file in repository.weight_files_of(component, variant)):
            return open_downloaded(name, hub_id, **options)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            futures = [
                pool.submit(_read_component, repository, component, library, class_name, variant)
                for component, (library, class_name) in entries.items()
            ]
            found = [future.result() for future in futures]
    components = {component.name: component for component in found if component is not None}
    if not components:
        raise SourceError(f"{hub_id}: is no pipeline sdcompress can work on (no component has safetensors weights)")
    return Source(name, "hub", repository.model_index, components, hub_id=hub_id, options=options)


def open_downloaded(
    name: str, hub_id: str, variant: str | None = None, revision: str | None = None, allow_pickle: bool = False
) -> Source:
    """Return the pipeline on the hub with its weights on this machine, downloaded if they are not in the cache.

    Arguments and errors are those of `open_hub`; `name` is the name of the source.
    """
    folder = fetch_weights(hub_id, variant, revision=revision, allow_pickle=allow_pickle)
    return open_folder(folder, name, "hub", variant, hub_id, allow_pickle, {"revision": revision})


def fetch_weights(
    hub_id: str, variant: str | None = None, revision: str | None = None, allow_pickle: bool = False
) -> Path:
    """Return the local folder of a pipeline on the hub. The files it needs are downloaded unless they are cached.

    Arguments and errors are those of `open_hub`.
    """
    if is_offline():
        return _cached(hub_id, revision)
    from huggingface_hub import snapshot_download

    with explained_errors(hub_id, revision):
        wanted = _needed_files(list_repository(hub_id, revision, allow_pickle), variant)
        # By branch, not by commit: offline, the cache is asked which commit the branch is at.
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=wanted, etag_timeout=TIMEOUT_S, max_workers=4)
        )


def fetch_component(hub_id: str, component: str) -> Path:
    """Return the local folder with one component from the hub, downloaded unless it is cached.

    Args:
        hub_id: a repository that holds one component, or a pipeline.
        component: which component of a pipeline; its tokenizers are downloaded too.

    Raises:
        SourceError: the repository cannot be reached; the message says why.
    """
    from huggingface_hub import snapshot_download

    small = ["config.json", "model_index.json", "LICENSE*", "tokenizer*", "vocab.json", "merges.txt",
             "special_tokens_map.json", "spiece.model"]  # fmt: skip
    own = ["config.json", "*.safetensors", "*.safetensors.index*.json"]
    with explained_errors(hub_id):
        # A pattern matches files in subfolders too, so these are excluded unless they are the component's.
        folder = Path(snapshot_download(hub_id, allow_patterns=small, etag_timeout=TIMEOUT_S))
        is_pipeline = (folder / "model_index.json").is_file()
        wanted = [f"{component}/{name}" for name in own] + ["tokenizer*/*"] if is_pipeline else own
        ignored = None if is_pipeline else ["*/*"]
        return Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=ignored, etag_timeout=TIMEOUT_S))


def _read_component(
    repository: Repository, component: str, library: str, class_name: str, variant: str | None
) -> ComponentSpec | None:
    chosen = repository.weight_files_of(component, variant)
    if not chosen:
        return None
    if "config.json" not in repository.files_of(component):
        raise SourceError(
            f"{repository.hub_id}: {component} has weights but no config.json; give a local folder that is whole"
        )
    config = repository.fetch_json(f"{component}/config.json")
    ranges: dict[str, TensorRange] = {}
    for name in chosen:
        ranges |= repository.fetch_header(f"{component}/{name}")
    named = {canonical_name(class_name, tensor): where for tensor, where in ranges.items()}
    pipeline_class = pipeline_class_of(repository.model_index)
    return ComponentSpec(component, library, class_name, config, specs_of_ranges(named), pipeline_class)


def _needed_files(repository: Repository, variant: str | None) -> list[str]:
    needed = ["model_index.json"]
    needed += [file for file in repository.files if "/" not in file and file.startswith("LICENSE")]
    for component in component_entries(repository.model_index):
        weights = repository.weight_files_of(component, variant)
        needed += [f"{component}/{name}" for name in weights]
        for file in (file for file in repository.files if file.startswith(f"{component}/")):
            is_index = is_shard_index(file) and len(weights) > 1 and _suffix(weights[0]) in file
            needed += [file] if is_index or not is_weight_file(file) else []
    return needed


def _suffix(file: str) -> str:
    return f".{file.rpartition('.')[2]}."


def _cached(hub_id: str, revision: str | None = None) -> Path:
    """Return the folder of the local cache that holds the pipeline, complete or not."""
    from huggingface_hub import try_to_load_from_cache

    with explained_errors(hub_id):
        found = try_to_load_from_cache(hub_id, "model_index.json", revision=revision)
    if not isinstance(found, str):
        raise SourceError(
            f"{hub_id}{f'@{revision}' if revision else ''}: is not in the local cache, and HF_HUB_OFFLINE=1 forbids "
            f"asking the hub; unset it, or give a local folder"
        )
    return Path(found).parent
