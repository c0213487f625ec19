"""Pipelines on the Hugging Face Hub: read from configs and safetensors headers alone, fetched only when asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import MAX_HEADER_BYTES, TensorRange, ranges_of_header
from sdcompress.sources.opening import open_folder
from sdcompress.sources.source import Source, component_entries, pipeline_class_of, specs_of_ranges
from sdcompress.sources.spec import ComponentSpec
from sdcompress.sources.tensor_names import canonical_name
from sdcompress.sources.weight_files import (
    check_shard_count,
    choose_weight_files,
    is_pickle,
    is_shard_index,
    is_weight_file,
)

TIMEOUT_S = 10.0
FIRST_HEADER_BYTES = 300_000  # holds the header of an SDXL UNet, so that most files take one request
CONNECTIONS = 8

CHECK_CONNECTION = (
    "check the connection, give a local folder instead, or set HF_HUB_OFFLINE=1 to use a copy that is already cached"
)


@dataclass(frozen=True)
class Repository:
    """A hub repository at one commit: its file names, and model_index.json."""

    hub_id: str
    commit: str
    files: tuple[str, ...]
    model_index: Mapping[str, Any]
    allow_pickle: bool = False

    def files_of(self, part: str) -> list[str]:
        """Names of the files directly in the folder `part`."""
        inside = (file.removeprefix(f"{part}/") for file in self.files if file.startswith(f"{part}/"))
        return [name for name in inside if "/" not in name]

    def weight_files_of(self, part: str, variant: str | None) -> list[str]:
        """Names of the safetensors files the component `part` is read from; empty for a part without weights."""
        where = f"{self.hub_id}: {part}"
        chosen = choose_weight_files(self.files_of(part), variant, where, self.allow_pickle)
        check_shard_count(where, chosen)
        return chosen


def open_hub(
    hub_id: str, variant: str | None = None, revision: str | None = None, allow_pickle: bool = False
) -> Source:
    """The pipeline `hub_id` as a Source: configs and safetensors headers are fetched, weights never.

    revision: a branch, tag or commit; None for the main branch. Pickled weights have no header to be fetched: they are
    downloaded at once, where `allow_pickle` allows them. With HF_HUB_OFFLINE=1 all is read from the local cache.
    SourceError says why a pipeline is out of reach.
    """
    name = f"{hub_id}@{revision}" if revision else hub_id
    options = {"variant": variant, "revision": revision, "allow_pickle": allow_pickle}
    if _is_offline():
        return _open_fetched(_cached(hub_id, revision), name, hub_id, options)
    with _explained(hub_id, revision):
        repository = _open_repository(hub_id, revision, allow_pickle)
        parts = component_entries(repository.model_index)
        if any(is_pickle(file) for part in parts for file in repository.weight_files_of(part, variant)):
            return _open_fetched(
                fetch_weights(hub_id, variant, revision=revision, allow_pickle=True), name, hub_id, options
            )
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            futures = [
                pool.submit(_read_component, repository, part, library, class_name, variant)
                for part, (library, class_name) in parts.items()
            ]
            found = [future.result() for future in futures]
    components = {component.name: component for component in found if component is not None}
    if not components:
        raise SourceError(f"{hub_id}: is no pipeline sdcompress can work on (no component has safetensors weights)")
    return Source(name, "hub", repository.model_index, components, hub_id=hub_id, options=options)


def _open_fetched(folder: Path, name: str, hub_id: str, options: Mapping[str, Any]) -> Source:
    kept = {"revision": options.get("revision")}
    return open_folder(
        folder, name, "hub", options.get("variant"), hub_id, bool(options.get("allow_pickle")), kept
    )  # fmt: skip


def fetch_weights(
    hub_id: str,
    variant: str | None = None,
    progress: bool = True,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> Path:
    """The local folder that holds `hub_id`'s pipeline, downloaded (or found in the cache) without unneeded weights.

    `progress` shows download bars on stderr. SourceError says why a pipeline is out of reach.
    """
    if _is_offline():
        return _cached(hub_id, revision)
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not progress and not are_progress_bars_disabled()
    with _explained(hub_id, revision):
        repository = _open_repository(hub_id, revision, allow_pickle)
        wanted = _needed_files(repository, variant)
        if quiet:
            disable_progress_bars()
        try:
            # By branch, not by commit: the cache remembers which commit a branch is at, and needs that offline.
            return Path(
                snapshot_download(
                    hub_id, revision=revision, allow_patterns=wanted, etag_timeout=TIMEOUT_S, max_workers=4
                )
            )
        finally:
            if quiet:
                enable_progress_bars()


def _needed_files(repository: Repository, variant: str | None) -> list[str]:
    needed = ["model_index.json"]
    needed += [file for file in repository.files if "/" not in file and file.startswith("LICENSE")]
    for part in component_entries(repository.model_index):
        weights = repository.weight_files_of(part, variant)
        needed += [f"{part}/{name}" for name in weights]
        for file in (file for file in repository.files if file.startswith(f"{part}/")):
            index = is_shard_index(file) and len(weights) > 1 and _suffix(weights[0]) in file
            needed += [file] if index or not is_weight_file(file) else []
    return needed


def _suffix(file: str) -> str:
    return f".{file.rpartition('.')[2]}."


def fetch_file(hub_id: str, file: str) -> bytes:
    """The content of one small file of a repository, asked for once. SourceError says why it is out of reach."""
    if _is_offline():
        raise SourceError(f"{hub_id}: HF_HUB_OFFLINE=1 forbids asking the hub")
    with _explained(hub_id):
        return _get(hub_id, "main", file)


def _open_repository(hub_id: str, revision: str | None = None, allow_pickle: bool = False) -> Repository:
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(hub_id, revision=revision, timeout=TIMEOUT_S)
    except json.JSONDecodeError:
        raise SourceError(f"{hub_id}: something other than the hub answered; {CHECK_CONNECTION}") from None
    files = tuple(sorted(sibling.rfilename for sibling in info.siblings or ()))
    if "model_index.json" not in files:
        raise SourceError(f"{hub_id}: is no diffusers pipeline (the repository has no model_index.json)")
    commit = info.sha or "main"
    return Repository(hub_id, commit, files, _fetch_json(hub_id, commit, "model_index.json"), allow_pickle)


def _read_component(
    repository: Repository, part: str, library: str, class_name: str, variant: str | None
) -> ComponentSpec | None:
    chosen = repository.weight_files_of(part, variant)
    if not chosen:
        return None
    if "config.json" not in repository.files_of(part):
        raise SourceError(
            f"{repository.hub_id}: {part} has weights but no config.json; give a local folder that is whole"
        )
    config = _fetch_json(repository.hub_id, repository.commit, f"{part}/config.json")
    ranges: dict[str, TensorRange] = {}
    for name in chosen:
        ranges.update(_fetch_header(repository.hub_id, repository.commit, f"{part}/{name}"))
    named = {canonical_name(class_name, tensor): where for tensor, where in ranges.items()}
    pipeline_class = pipeline_class_of(repository.model_index)
    return ComponentSpec(part, library, class_name, config, specs_of_ranges(named), pipeline_class)


def _fetch_json(hub_id: str, commit: str, file: str) -> dict[str, Any]:
    try:
        content = json.loads(_get(hub_id, commit, file))
    except ValueError as error:
        raise SourceError(f"{hub_id}/{file}: is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise SourceError(f"{hub_id}/{file}: is not a JSON object")
    return content


def _fetch_header(hub_id: str, commit: str, file: str) -> dict[str, TensorRange]:
    path = Path(f"{hub_id}/{file}")
    start = _get(hub_id, commit, file, first=0, last=FIRST_HEADER_BYTES - 1)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > MAX_HEADER_BYTES:
        raise SourceError(f"{path}: its header says {length:,} bytes, so it is no safetensors file")
    text = start[8 : 8 + length]
    if len(text) < length:
        text += _get(hub_id, commit, file, first=8 + len(text), last=7 + length)
    try:
        header = json.loads(text)
    except ValueError:
        raise SourceError(f"{path}: its header is not valid JSON") from None
    return ranges_of_header(path, header, data_start=8 + length, total_bytes=None)


def _get(hub_id: str, commit: str, file: str, first: int | None = None, last: int | None = None) -> bytes:
    """The bytes of a file in the repository, all of them or `first` to `last`, both included."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = dict(build_hf_headers())
    if first is not None and last is not None:
        headers |= {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
    response = get_session().get(
        hf_hub_url(hub_id, file, revision=commit), headers=headers, timeout=TIMEOUT_S
    )  # fmt: skip
    hf_raise_for_status(response)
    content: bytes = response.content
    if first is not None and last is not None and response.status_code != 206:
        return content[first : last + 1]  # the whole file came: a server without ranges
    return content


def fetch_component(hub_id: str, part: str) -> Path:
    """The local folder with `hub_id`'s own component, or, where it is a pipeline, with its `part` and tokenizers.

    Downloaded, or found in the cache. SourceError says why it is out of reach.
    """
    from huggingface_hub import snapshot_download

    small = ["config.json", "model_index.json", "LICENSE*", "tokenizer*", "vocab.json", "merges.txt",
             "special_tokens_map.json", "spiece.model"]  # fmt: skip
    own = ["config.json", "*.safetensors", "*.safetensors.index*.json"]
    with _explained(hub_id):
        # A pattern matches across folders: what lies deeper is left out unless it is the part's.
        folder = Path(snapshot_download(hub_id, allow_patterns=small, etag_timeout=TIMEOUT_S))
        pipeline = (folder / "model_index.json").is_file()
        wanted = [f"{part}/{name}" for name in own] + ["tokenizer*/*"] if pipeline else own
        ignored = None if pipeline else ["*/*"]
        return Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=ignored, etag_timeout=TIMEOUT_S))


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _cached(hub_id: str, revision: str | None = None) -> Path:
    """The folder of the local cache that holds `hub_id`, whole or not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, "model_index.json", revision=revision)
    except HFValidationError as error:
        raise _no_hub_id(hub_id, error) from None
    if not isinstance(found, str):
        raise SourceError(
            f"{hub_id}{f'@{revision}' if revision else ''}: is not in the local cache, and HF_HUB_OFFLINE=1 forbids "
            f"asking the hub; unset it, or give a local folder"
        )
    return Path(found).parent


def _no_hub_id(hub_id: str, error: Exception) -> SourceError:
    return SourceError(f"{hub_id}: is no hub id ({error}); write org/name, or give a local folder")


@contextmanager
def _explained(hub_id: str, revision: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub and its HTTP library raise into SourceErrors that say what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise SourceError(
            f"{hub_id}: is gated; accept its licence at https://huggingface.co/{hub_id} and log in (`hf auth login`), "
            f"or give a local folder"
        ) from None
    except RepositoryNotFoundError:
        raise SourceError(
            f"{hub_id}: the hub has no such model, or it is private; check the spelling, log in (`hf auth login`), "
            f"or give a local folder"
        ) from None
    except RevisionNotFoundError:
        raise SourceError(
            f"{hub_id}: has no revision {revision}; name a branch, a tag or a commit, or give a local folder"
        ) from None
    except HFValidationError as error:
        raise _no_hub_id(hub_id, error) from None
    except LocalEntryNotFoundError:
        raise SourceError(f"{hub_id}: the hub stopped answering; {CHECK_CONNECTION}") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise SourceError(f"{hub_id}: the hub answered {status}; try again later, or give a local folder") from None
    except _connection_errors() as error:
        raise SourceError(f"{hub_id}: cannot reach the hub ({type(error).__name__}); {CHECK_CONNECTION}") from None
    except OSError as error:
        raise SourceError(f"{hub_id}: cannot be saved to the local cache ({error.strerror or error})") from None


def _connection_errors() -> tuple[type[BaseException], ...]:
    """What a failed connection raises in whichever HTTP library huggingface_hub has loaded."""
    errors: list[type[BaseException]] = [ConnectionError, TimeoutError]
    for library, error in (("requests", "RequestException"), ("httpx", "HTTPError"), ("httpx2", "HTTPError")):
        if library in sys.modules:
            errors.append(getattr(sys.modules[library], error))
    return tuple(errors)


def with_weights(source: Source) -> Source:
    """The source with all it needs on this machine: weights, and a checkpoint's vocabularies, are fetched from the hub.

    A hub pipeline is read as it was opened: the same variant and revision.
    """
    if source.path is not None:
        return source
    if source.kind == "single-file":
        from sdcompress.sources.single_file.opening import open_single_file

        return open_single_file(source.name, **source.options, fetch=True)
    if source.hub_id is None:
        raise SourceError(f"{source.name}: has no weights and no hub id to fetch them from; give a folder")
    options = source.options
    folder = fetch_weights(
        source.hub_id,
        options.get("variant"),
        revision=options.get("revision"),
        allow_pickle=bool(options.get("allow_pickle")),
    )
    return _open_fetched(folder, source.name, source.hub_id, options)
