"""Tokenizers and image processors of transformers, under classes and settings that transformers 4 and 5 both have.

transformers 5 saves a tokenizer as `tokenizer.json` alone, which in transformers 4 only the classes whose names end in
`Fast` open; it has class names of its own; and it writes a list where transformers 4 wants another key. Published files
and what transformers 4 saves stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

LIBRARY = "transformers"
TOKENIZER_SETTINGS = "tokenizer_config.json"
_TOKENIZER = "tokenizer.json"
_VOCABULARIES = frozenset({"vocab.json", "merges.txt", "spiece.model", "tokenizer.model"})  # of the slow classes
_HAVE_FAST_CLASSES = frozenset({"CLIPTokenizer", "T5Tokenizer", "GemmaTokenizer"})
# Class that transformers 5 alone has -> the class of both.
_RENAMED = {"TokenizersBackend": "PreTrainedTokenizerFast", "CLIPImageProcessorPil": "CLIPImageProcessor"}


def portable_part(
    class_name: str, names: Collection[str], read: Callable[[str], bytes]
) -> tuple[str, dict[str, bytes]]:
    """The class to open a tokenizer or image processor with, and the files that need other content for it.

    class_name: as model_index.json has it; names: of the files in the part's folder; read: gives a file's content.
    """
    if _TOKENIZER not in names:
        return _RENAMED.get(class_name, class_name), {}
    portable = _RENAMED.get(class_name, class_name)
    if class_name in _HAVE_FAST_CLASSES and not _VOCABULARIES & set(names):
        portable = f"{class_name}Fast"
    changed: dict[str, bytes] = {}
    if TOKENIZER_SETTINGS in names:
        before: dict[str, Any] = json.loads(read(TOKENIZER_SETTINGS))
        after = _portable_settings(before)
        if after != before:
            changed[TOKENIZER_SETTINGS] = (json.dumps(after, indent=2, ensure_ascii=False) + "\n").encode()
    return portable, changed


def portable_folder(
    model_index: Mapping[str, Any], names_in: Mapping[str, Collection[str]], read: Callable[[str], bytes]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A pipeline's model_index.json with portable classes, and path -> content of the files that change.

    names_in: part -> names of the files in its folder; read: gives the content of a path in the pipeline's folder. The
    changed files include model_index.json where a class changes.
    """
    index = dict(model_index)
    changed: dict[str, bytes] = {}
    for part, names in names_in.items():
        library, class_name = model_index[part]
        if library != LIBRARY:
            continue
        portable, files = portable_part(class_name, names, lambda name, part=part: read(f"{part}/{name}"))  # type: ignore[misc]
        changed |= {f"{part}/{name}": content for name, content in files.items()}
        if portable != class_name:
            index[part] = [library, portable]
    if index != model_index:
        changed["model_index.json"] = (json.dumps(index, indent=2) + "\n").encode()
    return index, changed


def _portable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(settings)
    if isinstance(settings.get("extra_special_tokens"), list):  # transformers 4 reads a mapping under this name
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    if settings.get("tokenizer_class") in _RENAMED:
        changed["tokenizer_class"] = _RENAMED[settings["tokenizer_class"]]
    return changed
