"""Requests to the Hugging Face Hub: listing a repository, reading small files and safetensors headers, errors.

Headers are read by range requests of our own: `huggingface_hub`'s `parse_safetensors_file_metadata` has no timeout
before 2.0, so a hub that stops answering would hang it for good.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import MAX_HEADER_BYTES, TensorRange, ranges_of_header
from sdcompress.sources.weight_files import check_shard_count, choose_weight_files

TIMEOUT_S = 10.0
FIRST_HEADER_BYTES = 300_000  # holds the header of an SDXL UNet, so that most files take one request

CHECK_CONNECTION = (
    "check the connection, give a local folder instead, or set HF_HUB_OFFLINE=1 to use a copy that is already cached"
)


@dataclass(frozen=True)
class Repository:
    """A pipeline's repository on the hub at one commit.

    Attributes:
        files: paths of all files.
        model_index: the content of model_index.json.
        allow_pickle: whether pickled weights may be chosen.
    """

    hub_id: str
    commit: str
    files: tuple[str, ...]
    model_index: Mapping[str, Any]
    allow_pickle: bool = False

    def files_of(self, component: str) -> list[str]:
        """Return the names of the files directly in the component's folder."""
        inside = (file.removeprefix(f"{component}/") for file in self.files if file.startswith(f"{component}/"))
        return [name for name in inside if "/" not in name]

    def weight_files_of(self, component: str, variant: str | None) -> list[str]:
        """Return the names of the weight files that the component is read from; none for one without weights."""
        where = f"{self.hub_id}: {component}"
        chosen = choose_weight_files(self.files_of(component), variant, where, self.allow_pickle)
        check_shard_count(where, chosen)
        return chosen

    def fetch_json(self, file: str) -> dict[str, Any]:
        """Return the JSON object in a file of the repository."""
        return _json_object(self.hub_id, file, _get(self.hub_id, self.commit, file))

    def fetch_header(self, file: str) -> dict[str, TensorRange]:
        """Return name -> range of the tensors in a safetensors file of the repository."""
        path = Path(f"{self.hub_id}/{file}")
        start = _get(self.hub_id, self.commit, file, 0, FIRST_HEADER_BYTES)
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or length > MAX_HEADER_BYTES:
            raise SourceError(f"{path}: its header says {length:,} bytes, so it is no safetensors file")
        text = start[8 : 8 + length]
        if len(text) < length:
            text += _get(self.hub_id, self.commit, file, 8 + len(text), 8 + length)
        return ranges_of_header(path, _json_object(self.hub_id, file, text), 8 + length, total_bytes=None)


def list_repository(hub_id: str, revision: str | None = None, allow_pickle: bool = False) -> Repository:
    """Return the pipeline's repository as it is at `revision`, or on its main branch. Asks the hub."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(hub_id, revision=revision, timeout=TIMEOUT_S)
    except json.JSONDecodeError:
        raise SourceError(f"{hub_id}: something other than the hub answered; {CHECK_CONNECTION}") from None
    files = tuple(sorted(sibling.rfilename for sibling in info.siblings or ()))
    if "model_index.json" not in files:
        raise SourceError(f"{hub_id}: is no diffusers pipeline (the repository has no model_index.json)")
    commit = info.sha or "main"
    index = _json_object(hub_id, "model_index.json", _get(hub_id, commit, "model_index.json"))
    return Repository(hub_id, commit, files, index, allow_pickle)


def fetch_file(hub_id: str, file: str) -> bytes:
    """Return the content of one small file of a repository.

    Raises:
        SourceError: it cannot be fetched; the message says why.
    """
    if is_offline():
        raise SourceError(f"{hub_id}: HF_HUB_OFFLINE=1 forbids asking the hub")
    with explained_errors(hub_id):
        return _get(hub_id, "main", file)


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE=1 forbids asking the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def explained_errors(hub_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn the errors of huggingface_hub and its HTTP library into SourceErrors that say what to do."""
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
        raise SourceError(f"{hub_id}: is no hub id ({error}); write org/name, or give a local folder") from None
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
    """Return what a failed connection raises in the HTTP library that huggingface_hub has loaded."""
    errors: list[type[BaseException]] = [ConnectionError, TimeoutError]
    for library, error in (("requests", "RequestException"), ("httpx", "HTTPError"), ("httpx2", "HTTPError")):
        if library in sys.modules:
            errors.append(getattr(sys.modules[library], error))
    return tuple(errors)


def _json_object(hub_id: str, file: str, text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise SourceError(f"{hub_id}/{file}: is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise SourceError(f"{hub_id}/{file}: is not a JSON object")
    return content


def _get(hub_id: str, commit: str, file: str, start: int = 0, end: int | None = None) -> bytes:
    """Return the bytes of a file in a repository: all, or from offset `start` to before offset `end`."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = dict(build_hf_headers())
    if end is not None:
        headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    response = get_session().get(hf_hub_url(hub_id, file, revision=commit), headers=headers, timeout=TIMEOUT_S)
    hf_raise_for_status(response)
    content: bytes = response.content
    return content if response.status_code == 206 else content[start:end]  # a server may send the whole file
