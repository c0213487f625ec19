"""Vocabularies for a checkpoint, which holds none: searched on this machine by their hashes, or fetched.

sdcompress ships no published vocabulary. All Stable Diffusion and FLUX pipelines have the same one for CLIP, Stable
Diffusion 3 and FLUX the same one for T5.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.sources.hub_requests import fetch_file
from sdcompress.sources.single_file.checkpoint_folder import checkpoints_folder

TokenizerConfigs = Mapping[str, Mapping[str, Any]]  # tokenizer -> fields of its tokenizer_config.json

_START, _END = "<|startoftext|>", "<|endoftext|>"
_CLIP = {
    "vocab.json": "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349",
    "merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
}
_T5 = {"spiece.model": "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"}
_VOCABULARIES = {"CLIPTokenizer": _CLIP, "T5TokenizerFast": _T5}  # class -> file -> SHA-256
_HUB_IDS = {"CLIPTokenizer": "openai/clip-vit-large-patch14", "T5TokenizerFast": "google/t5-v1_1-xxl"}


def find_tokenizers(configs: TokenizerConfigs, folder: Path, fetch: bool) -> dict[str, bytes] | None:
    """Return path in the pipeline's folder -> content of every file of its tokenizers.

    Args:
        configs: tokenizer -> its class and other fields of its config.
        folder: the checkpoint's folder, which is searched first, before the caches of sdcompress and the hub.
        fetch: whether a vocabulary that is not found is fetched from the hub.

    Returns:
        None if a vocabulary is not on this machine and is not to be fetched.

    Raises:
        SourceError: a vocabulary cannot be fetched.
    """
    files: dict[str, bytes] = {}
    for tokenizer, config in configs.items():
        vocabulary = _find_vocabulary(str(config["tokenizer_class"]), folder)
        if vocabulary is None and fetch:
            vocabulary = _fetch_vocabulary(str(config["tokenizer_class"]), folder / tokenizer)
        if vocabulary is None:
            return None
        files |= {f"{tokenizer}/{name}": content for name, content in vocabulary.items()}
        files[f"{tokenizer}/tokenizer_config.json"] = json.dumps(_whole_config(config), indent=2).encode()
    return files


def _find_vocabulary(tokenizer_class: str, folder: Path) -> dict[str, bytes] | None:
    wanted = _VOCABULARIES[tokenizer_class]
    for place in _folders(folder):
        found = {name: (place / name).read_bytes() for name in wanted if (place / name).is_file()}
        if {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == wanted:
            return found
    return None


def _folders(folder: Path) -> Iterator[Path]:
    from huggingface_hub import constants

    yield folder
    yield from sorted(folder.glob("tokenizer*"))
    yield from sorted(checkpoints_folder().glob("*/tokenizer*"))  # of checkpoints opened before
    for snapshot in sorted(Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*")):
        yield snapshot
        yield from sorted(snapshot.glob("tokenizer*"))


def _fetch_vocabulary(tokenizer_class: str, folder: Path) -> dict[str, bytes]:
    hub_id, wanted = _HUB_IDS[tokenizer_class], _VOCABULARIES[tokenizer_class]
    try:
        found = {name: fetch_file(hub_id, name) for name in wanted}
    except SourceError as error:
        raise SourceError(
            f"{folder.name}: a checkpoint holds no vocabulary, and it could not be fetched ({error}); put "
            f"{' and '.join(wanted)} of {hub_id} into {folder}, or name a pipeline's folder that has them with --like"
        ) from None
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != wanted[name]:
            raise SourceError(f"{hub_id}/{name}: is not the published vocabulary; name a pipeline's folder with --like")
    return found


def _whole_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer_config.json with the fields that all published pipelines share."""
    if config["tokenizer_class"] != "CLIPTokenizer":
        return {**config, "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 100}
    tokens = {"bos_token": _START, "eos_token": _END, "unk_token": _END}
    return {**config, **tokens, "add_prefix_space": False, "do_lower_case": True, "errors": "replace"}
