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
from sdcompress.files.artifact import MANIFEST_NAME
from sdcompress.files.safetensors_file import TensorRange, read_header
from sdcompress.sources.spec import ComponentSpec, TensorSpec, parameter
from sdcompress.sources.weight_files import (
    check_shard_count,
    choose_weight_files,
    is_pickle,
    is_shard_index,
    is_weight_file,
    variant_of,
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


def open_source(
    model: str,
    variant: str | None = None,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    like: str | None = None,
    prediction: str | None = None,
) -> Source:
    """The pipeline `model` names: a built-in name, a diffusers folder, a checkpoint file, a catalog name or a hub id.

    Reads configs and safetensors headers only. variant: weight files such as `fp16`. revision: of a hub id, also
    written `org/name@revision`. allow_pickle: also read pickled weights, with torch's weights_only unpickler. like,
    prediction: see `single_file.opening.open_single_file`. Raises SourceError when there is no such model or it is not
    whole.
    """
    path = Path(model).expanduser()
    if path.is_file():
        _check_options(model, "a checkpoint file", variant=variant, revision=revision)
        from sdcompress.sources.single_file.opening import open_single_file

        return open_single_file(model, like=like, prediction=prediction, allow_pickle=allow_pickle)
    if model in BUILT_IN or path.is_dir():
        _check_options(model, "a folder", revision=revision, like=like, prediction=prediction)
        if model in BUILT_IN:
            return open_folder(ASSETS / model, name=model, kind="built-in", variant=variant)
        return open_folder(path, variant=variant, allow_pickle=allow_pickle)
    from sdcompress.sources import catalog

    entry = catalog.find(model)
    if entry is not None and revision is None:
        _check_options(model, "a catalog name", like=like, prediction=prediction)
        return catalog.open_entry(entry, name=model)
    hub_id = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", model)
    if hub_id and not model.startswith(".") and not is_weight_file(model):
        _check_options(model, "a hub id", like=like, prediction=prediction)
        if hub_id[2] and revision not in (None, hub_id[2]):
            raise SourceError(f"{model}: has the revision {hub_id[2]} already; leave out --revision {revision}")
        from sdcompress.sources.hub import open_hub

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


def _check_options(model: str, what: str, **given: str | None) -> None:
    """Raises SourceError for the first of these options that is given: they mean nothing for `what`."""
    for option, value in given.items():
        if value is not None:
            raise SourceError(f"--{option} {value}: means nothing for {what} such as {model}; leave it out")


def open_folder(
    path: Path,
    name: str | None = None,
    kind: Literal["built-in", "folder", "hub"] = "folder",
    variant: str | None = None,
    hub_id: str | None = None,
    allow_pickle: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """The diffusers folder `path` as a Source; `variant` picks files such as `model.fp16.safetensors`.

    allow_pickle: whether components without safetensors are read from pickles. options: what the Source keeps as such.
    """
    from sdcompress.sources.single_file.opening import open_linked

    linked = open_linked(path)
    if linked is not None:
        return linked
    missing = f"{path}: is no pipeline (it has no model_index.json); give the folder that save_pretrained wrote"
    model_index = read_json(path / "model_index.json", missing=missing)
    from sdcompress.sources.onnx_file import is_onnx_folder, open_onnx_folder
    from sdcompress.sources.openvino_file import is_openvino_folder, open_openvino_folder

    if is_onnx_folder(path):
        return open_onnx_folder(path, name or str(path), kind, hub_id)
    if is_openvino_folder(path):
        return open_openvino_folder(path, name or str(path), kind, hub_id)
    components: dict[str, ComponentSpec] = {}
    tensors: dict[str, Mapping[str, TensorRange]] = {}
    variants: set[str] = set()
    counted = _counted_parameters(path)
    other_files = [Path("model_index.json")]
    other_files += [Path(file.name) for file in sorted(path.glob("LICENSE*")) if file.is_file()]
    for part, (library, class_name) in component_entries(model_index).items():
        folder = path / part
        if not folder.is_dir():
            raise SourceError(
                f"{folder}: missing, though model_index.json lists {part} ({class_name}); download it, or write "
                f"[null, null] for it in model_index.json"
            )
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        # Nothing in a component's folder is dropped but weights in other formats and variants.
        kept = (file for file in files if not is_weight_file(file.name))
        other_files += [file.relative_to(path) for file in kept]
        ranges = component_ranges(folder, variant, allow_pickle)
        if ranges is None:
            continue
        config = read_json(folder / "config.json", missing=f"{folder}: has weights but no config.json; download it")
        variants |= {variant_of(where.file.name) for where in ranges.values()} - {""}
        ranges = {canonical_name(class_name, tensor): where for tensor, where in ranges.items()}
        specs = specs_of_ranges(ranges)
        if part in counted:
            specs = _with_counts(specs, counted[part])
        components[part] = ComponentSpec(part, library, class_name, config, specs, pipeline_class_of(model_index))
        tensors[part] = ranges
    if not components:
        raise SourceError(f"{path}: is no pipeline sdcompress can work on (no component has safetensors weights)")
    given = {**(options or {}), "allow_pickle": allow_pickle}
    if variants:  # asked for, or the only one there is: whoever opens the folder has to name it
        given["variant"] = variant if variant in variants else min(variants)
    return Source(
        name or str(path), kind, model_index, components, path, hub_id, tensors, tuple(other_files), options=given
    )  # fmt: skip


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


def _with_counts(specs: Mapping[str, TensorSpec], counts: Mapping[str, int]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(s.shape, s.dtype, counts.get(name, s.parameters)) for name, s in specs.items()}


def _counted_parameters(path: Path) -> dict[str, dict[str, int]]:
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
