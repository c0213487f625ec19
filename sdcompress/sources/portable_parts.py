"""Classes and settings by which transformers 4 and 5 both open a tokenizer or image processor.

transformers 5 saves a tokenizer as `tokenizer.json` alone, which transformers 4 opens only by the classes whose names
end in `Fast`. It also has class names of its own, and writes a list of special tokens under another key. Files as
published, or saved by transformers 4, stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sdcompress.errors import SourceError

LIBRARY = "transformers"
TOKENIZER_SETTINGS = "tokenizer_config.json"
_TOKENIZER = "tokenizer.json"
_VOCABULARIES = frozenset({"vocab.json", "merges.txt", "spiece.model", "tokenizer.model"})  # of the slow classes
_HAVE_FAST_CLASSES = frozenset({"CLIPTokenizer", "T5Tokenizer", "GemmaTokenizer"})
# Class that only transformers 5 has -> the class that both have.
_RENAMED = {"TokenizersBackend": "PreTrainedTokenizerFast", "CLIPImageProcessorPil": "CLIPImageProcessor"}


def portable_part(
    class_name: str, names: Collection[str], read: Callable[[str], bytes]
) -> tuple[str, dict[str, bytes]]:
    """Return the class that opens a tokenizer or image processor, and file -> content of the files that have to change.

    Args:
        class_name: its class in model_index.json.
        names: names of the files in its folder.
        read: function that returns the content of such a file.

    Raises:
        SourceError: the tokenizer's settings are not a JSON object.
    """
    portable = _RENAMED.get(class_name, class_name)
    if _TOKENIZER not in names:
        return portable, {}
    if class_name in _HAVE_FAST_CLASSES and not _VOCABULARIES & set(names):
        portable = f"{class_name}Fast"
    changed: dict[str, bytes] = {}
    if TOKENIZER_SETTINGS in names:
        before = _read_settings(read)
        after = _portable_settings(before)
        if after != before:
            changed[TOKENIZER_SETTINGS] = (json.dumps(after, indent=2, ensure_ascii=False) + "\n").encode()
    return portable, changed


def portable_folder(
    model_index: Mapping[str, Any], names_in: Mapping[str, Collection[str]], read: Callable[[str], bytes]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return a model_index.json with such classes, and path -> content of the pipeline's files that have to change.

    Args:
        model_index: content of model_index.json.
        names_in: component -> names of the files in its folder.
        read: function that returns the content of a file, given its path in the pipeline's folder.
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


def _read_settings(read: Callable[[str], bytes]) -> dict[str, Any]:
    try:
        settings = json.loads(read(TOKENIZER_SETTINGS))
    except ValueError as error:
        raise SourceError(f"{TOKENIZER_SETTINGS} of a tokenizer: is not valid JSON ({error})") from None
    if not isinstance(settings, dict):
        raise SourceError(f"{TOKENIZER_SETTINGS} of a tokenizer: is not a JSON object")
    return settings


def _portable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(settings)
    if isinstance(settings.get("extra_special_tokens"), list):  # transformers 4 reads a mapping under this name
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    if settings.get("tokenizer_class") in _RENAMED:
        changed["tokenizer_class"] = _RENAMED[settings["tokenizer_class"]]
    return changed
