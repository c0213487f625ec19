"""The updates that a LoRA file has for the layers of a component, from its header and a few scalars."""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdcompress.errors import SdcompressError, UserError
from sdcompress.files.safetensors_file import TensorRange, read_bytes, read_header, read_metadata
from sdcompress.lora.keys import Key, module_names, other_kind, parse_key
from sdcompress.sources.single_file.unet_names import locate_in_unet
from sdcompress.sources.spec import CONVOLUTIONS, ComponentSpec, layers_of

FILE_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # in folders of diffusers and PEFT
ADAPTER_CONFIG = "adapter_config.json"  # beside PEFT's own files
ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers puts the settings in a file's header
_STRUCT = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i"}
# Features that a UNet's cross-attention takes -> family.
_FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "SDXL's refiner", 2048: "SDXL"}


@dataclass(frozen=True)
class LowRank:
    """The update of a layer's weight: scale * up @ down (LoRA, arXiv:2106.09685, section 4.1).

    Args:
        layer: name of the layer.
        down: [rank, in, (kh, kw)].
        up: [out, rank].
        mid: [rank, rank, kh, kw], which LoCon has between the two.
        scale: alpha / rank; 1 where the file does not tell.
    """

    layer: str
    down: TensorRange
    up: TensorRange
    mid: TensorRange | None
    scale: float

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.down.shape[0]


@dataclass(frozen=True)
class LoraFile:
    """The updates that a file has for one component.

    Args:
        file: the file.
        updates: of each layer.
        others: number of layers of each other component that the file has updates for.
    """

    file: Path
    updates: Mapping[str, LowRank]
    others: Mapping[str, int] = field(default_factory=dict)


def find_file(path: Path) -> Path:
    """Return the LoRA's file, given the file or its folder.

    Raises:
        UserError: there is none.
    """
    for file in (path / name for name in FILE_NAMES) if path.is_dir() else (path,):
        if file.is_file():
            return file
    hint = f" (no {' or '.join(FILE_NAMES)} in it)" if path.is_dir() else ""
    raise UserError(f"{path}: no such file{hint}; paths are relative to the recipe's folder")


def open_lora(path: Path, spec: ComponentSpec) -> LoraFile:
    """Return the updates for the component.

    Raises:
        UserError: the file is of another kind, has nothing for the component, or does not fit it.
    """
    file = find_file(path)
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: is no safetensors file; convert it, since pickles can run code when opened")
    try:
        header = read_header(file)
    except SdcompressError as error:
        raise UserError(str(error)) from None
    parsed = _parse(file, header)
    mine = {name: key for name, key in parsed.items() if key.is_for(spec.name)}
    owners = sorted({key.owner or "" for key in parsed.values()} - {""})
    if not mine:
        raise UserError(f"{file}: has nothing for {spec.name}, only for {', '.join(owners)}; name it under those")
    layers = _match(file, mine, header, spec)
    config = _AdapterConfig.of(file, parsed, spec.name)
    updates, problems = {}, []
    for layer, parts in sorted(layers.items()):
        try:
            updates[layer] = _update(layer, parts, spec, config)
        except UserError as error:
            problems += [f"{file}: {line}" for line in error.problems]
    if problems:
        more = f" (and {len(problems) - 1} more layers like it)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more + _made_for(mine, header, file, spec))
    others = Counter(key.owner for key in parsed.values() if not key.is_for(spec.name) and key.role == "down")
    return LoraFile(file, updates, {str(owner): count for owner, count in sorted(others.items(), key=str)})


def _parse(file: Path, header: Mapping[str, TensorRange]) -> dict[str, Key]:
    found = {}
    for name in header:
        if what := other_kind(name):
            raise UserError(f"{file}: is {what} ({name}), which cannot be fused here; fuse it with the tool it is from")
        key = parse_key(name)
        if key is None:
            raise UserError(f"{file}: {name} is in no layout of LoRA that is known here (diffusers, kohya, PEFT)")
        found[name] = key
    if not found:
        raise UserError(f"{file}: holds no tensor")
    return found


def layer_names(spec: ComponentSpec) -> dict[str, str]:
    """Return the names, without dots, that LoRAs may use -> the layer, for all layers that can be updated."""
    able = [layer.name for layer in layers_of(spec) if layer.kind == "linear" or layer.kind in CONVOLUTIONS]
    known = {name.replace(".", "_"): name for name in able}
    if spec.class_name == "UNet2DConditionModel":  # whose layers some files call as the published checkpoint does
        published = {name: locate_in_unet(f"{name}.weight", spec.config) for name in able}
        known |= {found.name.removesuffix(".weight").replace(".", "_"): name
                  for name, found in published.items() if found is not None}  # fmt: skip
    return known


def _match(
    file: Path, keys: Mapping[str, Key], header: Mapping[str, TensorRange], spec: ComponentSpec
) -> dict[str, dict[str, TensorRange]]:
    """Return layer -> role -> tensor. Raises UserError where the component has no such layer."""
    known = layer_names(spec)
    matched: dict[str, dict[str, TensorRange]] = {}
    lost = []
    for name, key in keys.items():
        layer = next((known[one] for one in module_names(key.module) if one in known), None)
        if layer is None:
            lost.append(name)
        elif key.role in matched.setdefault(layer, {}):
            raise UserError(f"{file}: has two updates for {layer} ({name}); fuse them one by one")
        else:
            matched[layer][key.role] = header[name]
    if lost:
        raise UserError(
            f"{file}: {len(lost)} of its {len(keys)} keys for {spec.name} match no layer of it, the first being "
            f"{lost[0]}" + _made_for(keys, header, file, spec)
        )
    return matched


def _update(layer: str, parts: Mapping[str, TensorRange], spec: ComponentSpec, config: _AdapterConfig) -> LowRank:
    if missing := [role for role in ("down", "up") if role not in parts]:
        raise UserError(f"{layer} has no {missing[0]} half")
    down, up, mid = parts["down"], parts["up"], parts.get("mid")
    weight = spec.tensors[f"{layer}.weight"].shape
    rank = down.shape[0]
    inner = tuple(mid.shape[2:]) if mid else tuple(down.shape[2:])
    whole = (up.shape[0], (down.shape[1] if len(down.shape) > 1 else 0), *inner)
    ranks = (rank,) if mid is None else (*mid.shape[:2],)
    flat = all(size == 1 for size in up.shape[2:]) and (mid is None or all(size == 1 for size in down.shape[2:]))
    if len(up.shape) < 2 or up.shape[1] != rank or set(ranks) != {rank} or not flat:
        shapes = f"{list(up.shape)} and {list(down.shape)}" + (f" around {list(mid.shape)}" if mid else "")
        raise UserError(f"{layer}: its halves are {shapes}, whose ranks do not agree")
    if _without_ones(whole) != _without_ones(weight):
        raise UserError(f"{layer}: its update is {list(whole)}, and the weight is {list(weight)}")
    alpha = _scalar(parts["alpha"]) if "alpha" in parts else None
    return LowRank(layer, down, up, mid, config.scale(layer, rank) if alpha is None else alpha / rank)


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a 1x1 convolution's shape as a linear layer's, since files may have one where the model has the other."""
    return tuple(shape[:2]) if all(size == 1 for size in shape[2:]) else tuple(shape)


@dataclass(frozen=True)
class _AdapterConfig:
    """PEFT's settings, which give a layer's scale; without any, the scale is 1."""

    alpha: float | None
    alpha_pattern: Mapping[str, float]  # regular expression -> alpha of the layers that it matches
    use_rslora: bool  # whether alpha is divided by the root of the rank

    @classmethod
    def of(cls, file: Path, keys: Mapping[str, Key], component: str) -> _AdapterConfig:
        """Return the settings from the file's header, or from the file that PEFT writes beside its own."""
        packed = json.loads(read_metadata(file).get(ADAPTER_METADATA, "{}"))
        settings: dict[str, Any] = {name.removeprefix(f"{component}."): value for name, value in packed.items()
                                    if name.startswith(f"{component}.")}  # fmt: skip
        beside = file.with_name(ADAPTER_CONFIG)
        if any(name.startswith("base_model.model.") for name in keys):
            has_alphas = any(key.role == "alpha" for key in keys.values())
            if not beside.is_file() and not has_alphas:
                raise UserError(f"{file}: is PEFT's, and {ADAPTER_CONFIG}, which has its alpha, is not beside it")
            settings = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
        if settings.get("use_dora"):
            raise UserError(f"{file}: is a DoRA, which cannot be fused here; fuse it with the tool it is from")
        alpha, pattern = settings.get("lora_alpha"), settings.get("alpha_pattern") or {}
        return cls(alpha, pattern, bool(settings.get("use_rslora")))

    def scale(self, layer: str, rank: int) -> float:
        """Return alpha / rank for a layer, or as the settings say."""
        alpha = rank if self.alpha is None else self.alpha
        for pattern, value in self.alpha_pattern.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", layer):  # as PEFT matches them
                alpha = value
        return float(alpha / (math.sqrt(rank) if self.use_rslora else rank))


def _scalar(where: TensorRange) -> float:
    data = bytes(read_bytes(where))
    if math.prod(where.shape) == 1 and where.dtype == "BF16":
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    if math.prod(where.shape) != 1 or where.dtype not in _STRUCT:
        raise UserError(f"its alpha is {where.dtype} {list(where.shape)}, not a number")
    return float(struct.unpack(_STRUCT[where.dtype], data)[0])


def _made_for(keys: Mapping[str, Key], header: Mapping[str, TensorRange], file: Path, spec: ComponentSpec) -> str:
    """Return the model that the file was made for, as the end of an error message."""
    metadata = read_metadata(file)
    said = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version")
    for name, key in keys.items():
        if key.role == "down" and re.search(r"attn2_(processor_)?to_k$", key.module):
            family = _FAMILIES.get(header[name].shape[1])
            if family and header[name].shape[1] != spec.config.get("cross_attention_dim"):
                return f"; it was made for {family}" + (f" ({said})" if said else "")
    return f"; it was made for {said}" if said else "; was it made for another model?"
