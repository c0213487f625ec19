"""A component that replaces a pipeline's own: finding it, reading its headers, and checking that it fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcompress.errors import SourceError
from sdcompress.files.safetensors_file import TensorRange
from sdcompress.sources import catalog
from sdcompress.sources.component_folder import component_ranges, read_json, specs_of_ranges
from sdcompress.sources.opening import open_source
from sdcompress.sources.portable_parts import portable_part
from sdcompress.sources.pruned_config import is_quantized
from sdcompress.sources.source import BUILT_IN, Source, component_entries
from sdcompress.sources.spec import ComponentSpec

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny", "AsymmetricAutoencoderKL")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "spiece.model",
)  # fmt: skip
# Entries of a denoiser's config that must stay as they are.
_DENOISER_FIELDS = (
    "in_channels", "out_channels", "cross_attention_dim", "joint_attention_dim", "pooled_projection_dim",
    "caption_channels", "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim",
    "encoder_hid_dim", "time_cond_proj_dim", "guidance_embeds",
)  # fmt: skip


@dataclass(frozen=True)
class Replacement:
    """A component for a pipeline.

    Args:
        tensors: tensor -> where it is stored.
        files: path in the pipeline's folder -> content, of the small files that come with it.
        parts: entries of model_index.json for parts that come with it, such as a tokenizer.
    """

    spec: ComponentSpec
    tensors: Mapping[str, TensorRange]
    files: Mapping[Path, bytes] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        return tuple(sorted({where.file for where in self.tensors.values()}))


def tokenizer_of(component: str) -> str:
    """Return the name of the part that holds a text encoder's tokenizer."""
    return component.replace("text_encoder", "tokenizer")


def open_replacement(
    model: str, part: str, component: str, variant: str | None, folder: Path, fetch: Callable[[str, str], Path]
) -> Replacement:
    """Return a component as a replacement named `component`.

    Args:
        model: the folder of a component or pipeline (relative to `folder`), a name that sdcompress knows, or a hub id.
        part: the component to take, where `model` is a pipeline.
        variant: variant of the weight files, such as fp16.
        fetch: returns the folder of a hub id's component, given the id and the part.

    Raises:
        SourceError: there is no such component, or files are missing.
    """
    path = folder / Path(model).expanduser()
    if not path.is_dir():
        if model in BUILT_IN or catalog.find(model) is not None:
            return _from_source(open_source(model, variant), part, component)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
            raise SourceError(f"{path}: no such folder; give one with a config.json and safetensors, or a hub id")
        path = fetch(model, part)
    if not (path / "model_index.json").is_file():
        return _from_folder(path, component, variant)
    entries = component_entries(read_json(path / "model_index.json", missing=""))
    if part not in entries:
        raise SourceError(f"{path}: has no component {part}; it has {', '.join(entries)}")
    tokenizer = tokenizer_of(part)
    return _from_folder(
        path / part, component, variant, entries[part], path / tokenizer if tokenizer in entries else None,
        entries.get(tokenizer),
    )  # fmt: skip


def _from_source(source: Source, part: str, component: str) -> Replacement:
    """Return the part of a pipeline that sdcompress knows; catalog entries have no small files."""
    if part not in source.components:
        raise SourceError(f"{source.name}: has no component {part}; it has {', '.join(source.components)}")
    moved, entries = {part: component}, component_entries(source.model_index)
    if component.startswith("text_encoder"):
        moved[tokenizer_of(part)] = tokenizer_of(component)
    files = {
        Path(moved[file.parts[0]], *file.parts[1:]): source.read_file(file)
        for file in source.other_files
        if len(file.parts) > 1 and file.parts[0] in moved
    }
    parts = {new: entries[old] for old, new in moved.items() if old != part and old in entries}
    return Replacement(source.components[part].replace(name=component), source.tensors.get(part, {}), files, parts)


def _from_folder(
    path: Path,
    component: str,
    variant: str | None,
    entry: tuple[str, str] | None = None,
    tokenizer: Path | None = None,
    tokenizer_entry: tuple[str, str] | None = None,
) -> Replacement:
    """Return the component in the folder.

    Args:
        entry: its library and class, where a pipeline's model_index.json tells them.
        tokenizer: folder of its tokenizer, where that is known.
    """
    config = read_json(path / "config.json", missing=f"{path}: holds no component (it has no config.json)")
    library, class_name = entry or _class_of(config, path)
    ranges = component_ranges(path, class_name, variant)
    if not ranges:
        raise SourceError(f"{path}: has a config.json but no safetensors weights; download the folder again")
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    files = {
        Path(component, name): (path / name).read_bytes()
        for name in names
        if name == "config.json" or name.startswith("LICENSE")
    }
    if tokenizer is None and "tokenizer_config.json" in names:
        tokenizer = path
        settings = read_json(path / "tokenizer_config.json", missing="")
        tokenizer_entry = ("transformers", str(settings.get("tokenizer_class", "AutoTokenizer")))
    parts = {}
    if component.startswith("text_encoder") and tokenizer is not None and tokenizer_entry is not None:
        part = tokenizer_of(component)
        contents = {name: (tokenizer / name).read_bytes() for name in _TOKENIZER_FILES if (tokenizer / name).is_file()}
        portable, changed = portable_part(tokenizer_entry[1], contents, contents.__getitem__)
        parts[part] = (tokenizer_entry[0], portable)
        files |= {Path(part, name): content for name, content in (contents | changed).items()}
    spec = ComponentSpec(component, library, class_name, config, specs_of_ranges(ranges))
    return Replacement(spec, ranges, files, parts)


def _class_of(config: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """Return the library and class that a component's own config names."""
    if "_class_name" in config:
        return "diffusers", str(config["_class_name"])
    if config.get("architectures"):
        return "transformers", str(config["architectures"][0])
    raise SourceError(f"{path / 'config.json'}: names no class (_class_name or architectures)")


def misfits(original: ComponentSpec, replacement: Replacement) -> list[str]:
    """Return why the replacement does not fit in the place of the original: one text for each reason."""
    new = replacement.spec
    if is_quantized(new.config):
        return ["is quantized already; give the original weights"]
    if original.class_name in AUTOENCODERS and new.class_name in AUTOENCODERS:
        return _misfits_of_autoencoders(original, new)
    if new.class_name != original.class_name:
        choice = " or ".join(AUTOENCODERS) if original.class_name in AUTOENCODERS else f"a {original.class_name}"
        return [f"is a {new.class_name}, which cannot stand for the {original.name}; give {choice}"]
    if original.name.startswith("text_encoder"):
        return _misfits_of_text_encoders(original, replacement)
    if original.name in ("unet", "transformer"):
        return _differences(
            original, {key: (original.config.get(key), new.config.get(key)) for key in _DENOISER_FIELDS}
        )
    return []


def _misfits_of_autoencoders(original: ComponentSpec, new: ComponentSpec) -> list[str]:
    facts: dict[str, tuple[Any, Any]] = {
        "latent_channels": (original.config.get("latent_channels", 4), new.config.get("latent_channels", 4)),
        "pixels per latent": (_pixels_per_latent(original), _pixels_per_latent(new)),
    }
    if original.class_name == new.class_name:  # other classes take other latents, and their own factor says so
        for key, default in (("scaling_factor", 0.18215), ("shift_factor", None)):
            facts[key] = (original.config.get(key, default), new.config.get(key, default))
    return _differences(original, facts)


def _pixels_per_latent(spec: ComponentSpec) -> int:
    channels = spec.config.get("block_out_channels") or spec.config.get("decoder_block_out_channels")
    default = 4 if spec.class_name == "AutoencoderTiny" else 1  # blocks, where a config says nothing
    return int(2 ** ((len(channels) if channels else default) - 1))


def _misfits_of_text_encoders(original: ComponentSpec, replacement: Replacement) -> list[str]:
    old, new = _text_config(original), _text_config(replacement.spec)
    facts = {key: (old.get(key), new.get(key)) for key in ("hidden_size", "d_model")}
    if "Projection" in original.class_name:
        facts["projection_dim"] = (old.get("projection_dim", 512), new.get("projection_dim", 512))
    if tokenizer_of(original.name) not in replacement.parts:
        facts["vocab_size"] = (old.get("vocab_size"), new.get("vocab_size"))
        facts["max_position_embeddings"] = (old.get("max_position_embeddings"), new.get("max_position_embeddings"))
    return _differences(original, facts)


def _text_config(spec: ComponentSpec) -> Mapping[str, Any]:
    return spec.config.get("text_config") or spec.config


def _differences(original: ComponentSpec, facts: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return a text for each fact (old and new value) that differs, with what depends on it."""
    why = {
        "latent_channels": "the denoiser works on that many channels",
        "hidden_size": "the denoiser's cross-attention takes that many features",
        "d_model": "the denoiser takes that many features",
        "vocab_size": "the pipeline's tokenizer stays, since the replacement brings none",
        "max_position_embeddings": "the pipeline's tokenizer stays, since the replacement brings none",
    }
    return [
        f"its {key} is {new}, and the {original.name}'s was {old}"
        + (f" ({why[key]})" if key in why else "")
        + "; give one that fits the rest of the pipeline"
        for key, (old, new) in facts.items()
        if _plain(old) != _plain(new)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
