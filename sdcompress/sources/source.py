"""A pipeline as configs and safetensors headers or ONNX graphs: what a model is, read without loading a weight."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdcompress.errors import SourceError
from sdcompress.files.manifest import MANIFEST_NAME
from sdcompress.files.safetensors_file import TensorRange, read_header
from sdcompress.sources.spec import ComponentSpec, TensorSpec, parameter
from sdcompress.sources.weight_files import (
    check_shard_count,
    choose_weight_files,
    is_pickle,
    is_shard_index,
)

if TYPE_CHECKING:
    import torch

ASSETS = Path(__file__).parents[1] / "assets"
BUILT_IN = ("tiny-sd",)

DENOISERS = ("unet", "transformer")
SAFETY_CHECKERS = frozenset({"safety_checker"})
# Attention of AutoencoderKL as it was saved before diffusers 0.18; loaders rename it and so do we.
_OLD_VAE_ATTENTION = re.compile(r"(?<=\.attentions\.)(\d+)\.(query|key|value|proj_attn)\.")
_NEW_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# Tensors that files hold though they are no parameters of the module.
_BUFFERS = re.compile(r"(^|\.)(position_ids|pos_embed\.pos_embed|num_batches_tracked|running_mean|running_var)$")


@dataclass(frozen=True)
class Source:
    """A pipeline before any work: every component's spec, and where its tensors and other files lie."""

    name: str
    kind: Literal["built-in", "catalog", "folder", "hub", "single-file"]
    model_index: Mapping[str, Any]
    components: Mapping[str, ComponentSpec]
    path: Path | None = None
    hub_id: str | None = None
    tensors: Mapping[str, Mapping[str, TensorRange]] = field(default_factory=dict)
    other_files: tuple[Path, ...] = ()  # relative to path: configs, tokenizers, licences
    notes: tuple[str, ...] = ()
    format: Literal["safetensors", "onnx", "openvino"] = "safetensors"
    # Component -> reader of its tensors by name, where steps compute them (execution/pruned_source.py).
    readers: Mapping[str, Callable[[str], torch.Tensor]] = field(default_factory=dict)
    # Of other_files those whose content is not that of the file below `path` (steps/replace_component.py).
    changed_files: Mapping[Path, bytes] = field(default_factory=dict)
    onnx_files: tuple[Path, ...] = ()  # graphs and data of an ONNX or OpenVINO folder, whose tensors have no ranges
    options: Mapping[str, Any] = field(default_factory=dict)  # of open_source, where the name alone would not give this

    @property
    def given_options(self) -> dict[str, Any]:
        """The options that are not as they are by default."""
        return {name: value for name, value in sorted(self.options.items()) if value not in (None, False)}

    @property
    def pipeline_class(self) -> str:
        return pipeline_class_of(self.model_index)

    def read_file(self, relative: Path) -> bytes:
        """The content of one of `other_files`."""
        if relative in self.changed_files:
            return self.changed_files[relative]
        assert self.path is not None
        return (self.path / relative).read_bytes()

    def copy_file(self, relative: Path, target: Path) -> None:
        """Writes one of `other_files` to `target`, whose folder is made."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if relative in self.changed_files:
            target.write_bytes(self.changed_files[relative])
        else:
            assert self.path is not None
            shutil.copyfile(self.path / relative, target)

    def file_bytes(self, relative: Path) -> int:
        """The size of one of `other_files`."""
        if relative in self.changed_files:
            return len(self.changed_files[relative])
        assert self.path is not None
        return (self.path / relative).stat().st_size

    @property
    def parameters(self) -> int:
        return sum(component.parameters for component in self.components.values())

    @property
    def weights_bytes(self) -> int:
        return sum(component.weights_bytes for component in self.components.values())

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of all that belongs to the pipeline: weights files whole, configs, tokenizers."""
        if self.path is None:
            return self.weights_bytes
        weights = {where.file for ranges in self.tensors.values() for where in ranges.values()} | {*self.onnx_files}
        others = {self.path / relative for relative in self.other_files}
        return sum(file.stat().st_size for file in weights | others)


def pipeline_class_of(model_index: Mapping[str, Any]) -> str:
    """The diffusers class that a model_index.json names."""
    return str(model_index.get("_class_name", "DiffusionPipeline"))


def component_entries(model_index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Component name -> (library, class) of the parts a model_index.json really has."""
    entries = {}
    for part, value in model_index.items():
        if not part.startswith("_") and isinstance(value, list) and len(value) == 2 and all(value):
            entries[part] = (str(value[0]), str(value[1]))
    return entries


def canonical_name(class_name: str, tensor: str) -> str:
    """The tensor's name in today's diffusers, whatever version saved it."""
    if class_name.startswith("AutoencoderKL"):
        return _OLD_VAE_ATTENTION.sub(lambda m: f"{m[1]}.{_NEW_VAE_ATTENTION[m[2]]}.", tensor)
    return tensor


def is_buffer(tensor: str) -> bool:
    """Whether a stored tensor is a buffer rather than a parameter."""
    return bool(_BUFFERS.search(tensor))


def has_weights(folder: Path) -> bool:
    """Whether a component's folder holds safetensors."""
    return any(file.suffix == ".safetensors" for file in folder.iterdir())


def component_ranges(folder: Path, variant: str | None, allow_pickle: bool = False) -> dict[str, TensorRange] | None:
    """Name -> range of the tensors in a component's folder; None for a part without weights, such as a tokenizer."""
    names = [file.name for file in sorted(folder.iterdir()) if file.is_file()]
    chosen = choose_weight_files(names, variant, str(folder), allow_pickle)
    if not chosen:
        if any(is_shard_index(name) for name in names):
            raise SourceError(f"{folder}: has a weights index but no safetensors shard; download the folder again")
        if "config.json" in names and not any(name.startswith(("tokenizer", "preprocessor")) for name in names):
            raise SourceError(f"{folder}: has a config.json but no weights; download the folder again")
        return None
    ranges: dict[str, TensorRange] = {}
    for name in chosen:
        ranges.update(_read_ranges(folder / name, allow_pickle))
    _check_shards(folder, chosen, ranges)
    return ranges


def _read_ranges(file: Path, allow_pickle: bool) -> Mapping[str, TensorRange]:
    if not is_pickle(file.name):
        return read_header(file)
    from sdcompress.sources.pickled_file import read_pickled

    return read_pickled(file, allow_pickle)


def _check_shards(folder: Path, chosen: list[str], ranges: Mapping[str, TensorRange]) -> None:
    check_shard_count(str(folder), chosen)
    for index in sorted(file for file in folder.glob("*.json") if is_shard_index(file.name)):
        listed = read_json(index, missing=str(index)).get("weight_map", {})
        missing = sorted(set(listed) - set(ranges)) if set(listed.values()) == set(chosen) else []
        if missing:
            raise SourceError(f"{index}: lists {missing[0]}, which no shard holds; download the shards again")


def specs_of_ranges(ranges: Mapping[str, TensorRange]) -> dict[str, TensorSpec]:
    """Tensor name -> spec; buffers count no parameters."""
    specs = {}
    for name, where in ranges.items():
        spec = parameter(where.shape, where.dtype)
        specs[name] = TensorSpec(spec.shape, spec.dtype, 0) if is_buffer(name) else spec
    return specs


def with_counts(specs: Mapping[str, TensorSpec], counts: Mapping[str, int]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(s.shape, s.dtype, counts.get(name, s.parameters)) for name, s in specs.items()}


def counted_parameters(path: Path) -> dict[str, dict[str, int]]:
    """Component -> tensor -> parameters it stands for, where an sdcompress manifest says that it differs."""
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


def read_json(file: Path, missing: str) -> dict[str, Any]:
    """The JSON object in `file`. SourceError says what is wrong with it, or `missing` when it is not there."""
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
