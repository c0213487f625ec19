"""Vocabularies for a checkpoint, which holds none: found on this machine, or fetched; known by what they hold.

sdcompress ships no published vocabulary. CLIP's is one and the same in every Stable Diffusion and FLUX pipeline, T5's
in Stable Diffusion 3 and FLUX.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.sources.single_file.linked_folder import home

FACTS = Mapping[str, Mapping[str, Any]]  # part -> what its tokenizer_config.json needs

_START, _END = "<|startoftext|>", "<|endoftext|>"
_CLIP = {
    "vocab.json": "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349",
    "merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
}
_T5 = {"spiece.model": "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"}
_VOCABULARIES = {"CLIPTokenizer": _CLIP, "T5TokenizerFast": _T5}  # class -> file -> SHA-256
_HUB_IDS = {"CLIPTokenizer": "openai/clip-vit-large-patch14", "T5TokenizerFast": "google/t5-v1_1-xxl"}


def find_tokenizers(facts: FACTS, beside: Path, fetch: bool) -> dict[str, bytes] | None:
    """Path in the pipeline's folder -> content of every tokenizer file; None when a vocabulary is not on this machine.

    Looked for beside the checkpoint, then in sdcompress's and the hub's cache, then, with `fetch`, on the hub.
    SourceError says what to do when it cannot be fetched.
    """
    files: dict[str, bytes] = {}
    for part, fact in facts.items():
        vocabulary = _find_vocabulary(str(fact["tokenizer_class"]), beside)
        if vocabulary is None and fetch:
            vocabulary = _fetch_vocabulary(str(fact["tokenizer_class"]), part, beside)
        if vocabulary is None:
            return None
        config = _config_of(fact)
        files |= {f"{part}/{name}": content for name, content in vocabulary.items()}
        files[f"{part}/tokenizer_config.json"] = json.dumps(config, indent=2).encode()
    return files


def _find_vocabulary(tokenizer_class: str, beside: Path) -> dict[str, bytes] | None:
    wanted = _VOCABULARIES[tokenizer_class]
    for folder in _folders(beside):
        found = {name: (folder / name).read_bytes() for name in wanted if (folder / name).is_file()}
        if {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == wanted:
            return found
    return None


def _folders(beside: Path) -> Iterator[Path]:
    from huggingface_hub import constants

    yield beside
    yield from sorted(beside.glob("tokenizer*"))
    yield from sorted(home().glob("*/tokenizer*"))  # of checkpoints read before
    for snapshot in sorted(Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*")):
        yield snapshot
        yield from sorted(snapshot.glob("tokenizer*"))


def _fetch_vocabulary(tokenizer_class: str, part: str, beside: Path) -> dict[str, bytes]:
    from sdcompress.sources.hub import fetch_file

    hub_id, wanted = _HUB_IDS[tokenizer_class], _VOCABULARIES[tokenizer_class]
    try:
        found = {name: fetch_file(hub_id, name) for name in wanted}
    except SourceError as error:
        raise SourceError(
            f"{part}: a checkpoint holds no vocabulary, and it could not be fetched ({error}); put "
            f"{' and '.join(wanted)} of {hub_id} into {beside / part}, or name a pipeline's folder that has them "
            f"with --like"
        ) from None
    for name, content in found.items():
        if hashlib.sha256(content).hexdigest() != wanted[name]:
            raise SourceError(f"{hub_id}/{name}: is not the vocabulary it was; name a pipeline's folder with --like")
    return found


def _config_of(fact: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer_config.json, as the published pipelines have it."""
    if fact["tokenizer_class"] != "CLIPTokenizer":
        return {**fact, "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 100}
    tokens = {"bos_token": _START, "eos_token": _END, "unk_token": _END}
    return {**fact, **tokens, "add_prefix_space": False, "do_lower_case": True, "errors": "replace"}
