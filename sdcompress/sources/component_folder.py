"""Reading the folder of one component: its JSON files, its tensors as ranges of bytes, and their specs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.files.manifest import MANIFEST_NAME
from sdcompress.files.safetensors_file import TensorRange, read_header
from sdcompress.sources.pickled_file import read_pickled
from sdcompress.sources.source import is_buffer
from sdcompress.sources.spec import TensorSpec, parameter
from sdcompress.sources.tensor_names import canonical_name
from sdcompress.sources.weight_files import (
    check_shard_count,
    choose_weight_files,
    is_pickle,
    is_shard_index,
    is_weight_file,
)


def component_ranges(
    folder: Path, class_name: str, variant: str | None = None, allow_pickle: bool = False
) -> dict[str, TensorRange] | None:
    """Return canonical name -> range of the tensors in a component's folder, as `stored_ranges` does.

    Args:
        class_name: the component's class.
    """
    stored = stored_ranges(folder, variant, allow_pickle)
    return stored and {canonical_name(class_name, name): where for name, where in stored.items()}


def stored_ranges(
    folder: Path, variant: str | None = None, allow_pickle: bool = False
) -> dict[str, TensorRange] | None:
    """Return name -> range of the tensors in a component's folder, under the names that they have there.

    Args:
        folder: the component's folder.
        variant: which weight files to read, such as `fp16`.
        allow_pickle: whether to read pickled weights where there are no others.

    Returns:
        None for a component without weights, such as a tokenizer.

    Raises:
        SourceError: weights are missing, ambiguous or damaged.
    """
    names = [file.name for file in sorted(folder.iterdir()) if file.is_file()]
    chosen = choose_weight_files(names, variant, str(folder), allow_pickle)
    if not chosen:
        if any(is_shard_index(name) for name in names):
            raise SourceError(f"{folder}: has a weights index but no safetensors shard; download the folder again")
        if "config.json" in names and not any(name.startswith(("tokenizer", "preprocessor")) for name in names):
            raise SourceError(f"{folder}: has a config.json but no weights; download the folder again")
        return None
    check_shard_count(str(folder), chosen)
    ranges: dict[str, TensorRange] = {}
    for name in chosen:
        ranges |= read_pickled(folder / name, allow_pickle) if is_pickle(name) else read_header(folder / name)
    for index in sorted(file for file in folder.glob("*.json") if is_shard_index(file.name)):
        listed = read_json(index, missing=str(index)).get("weight_map", {})
        missing = sorted(set(listed) - set(ranges)) if set(listed.values()) == set(chosen) else []
        if missing:
            raise SourceError(f"{index}: lists {missing[0]}, which no shard holds; download the shards again")
    return ranges


def has_weights(folder: Path) -> bool:
    """Return whether a component's folder holds safetensors."""
    return any(file.suffix == ".safetensors" for file in folder.iterdir())


def specs_of_ranges(
    ranges: Mapping[str, TensorRange], counts: Mapping[str, int] | None = None
) -> dict[str, TensorSpec]:
    """Return tensor -> spec.

    Args:
        ranges: tensor -> where it is stored.
        counts: tensor -> number of parameters it stands for, where that is not its number of elements. Buffers count 0.
    """
    counts = counts or {}
    specs = {}
    for name, where in ranges.items():
        spec = parameter(where.shape, where.dtype)
        count = counts.get(name, 0 if is_buffer(name) else spec.parameters)
        specs[name] = TensorSpec(spec.shape, spec.dtype, count)
    return specs


def counted_parameters(path: Path) -> dict[str, dict[str, int]]:
    """Return component -> tensor -> number of parameters it stands for, as the manifest of an artifact says.

    Only tensors whose number of elements differs are listed. Empty for a pipeline that is no artifact.
    """
    file = path / MANIFEST_NAME
    if not file.exists():
        return {}
    components = read_json(file, missing=str(file)).get("components", {})
    try:
        return {name: dict(entry.get("parameters_of_packed", {})) for name, entry in components.items()}
    except (AttributeError, TypeError, ValueError):
        raise SourceError(
            f"{file}: its components are malformed; compress again, or download the folder again"
        ) from None


def small_files(path: Path, folders: Iterable[Path]) -> list[Path]:
    """Return the files of a pipeline that hold no weights, relative to `path`.

    Args:
        path: the pipeline's folder, of which model_index.json and licences count.
        folders: the folders of its components.
    """
    licences = [file for file in sorted(path.glob("LICENSE*")) if file.is_file()]
    inside = [file for folder in folders for file in sorted(folder.rglob("*"))]
    found = [file for file in inside if file.is_file() and not is_weight_file(file.name)]
    return [Path("model_index.json"), *(file.relative_to(path) for file in (*licences, *found))]


def read_json(file: Path, missing: str) -> dict[str, Any]:
    """Return the JSON object in `file`.

    Args:
        file: the file.
        missing: the error message when there is no such file.

    Raises:
        SourceError: there is no such file, or it holds no JSON object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(missing) from None
    except OSError as error:
        raise SourceError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise SourceError(f"{file}: is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise SourceError(f"{file}: is not a JSON object")
    return value
