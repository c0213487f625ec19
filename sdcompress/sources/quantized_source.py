"""Components that are quantized already: recognised by their config or tensors, and copied or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdcompress.sources.pruned_config import is_quantized
from sdcompress.sources.source import Source
from sdcompress.sources.spec import ComponentSpec
from sdcompress.sources.weight_files import is_shard_index, variant_of

_EIGHT_BITS = {"F8_E4M3": "fp8 (e4m3)", "F8_E5M2": "fp8 (e5m2)", "I8": "8-bit integers", "U8": "packed integers"}

# Ends of names of tensors by which other tools turn codes back into weights.
_SCALES = (
    ".scale_weight", ".weight_scale", ".scale_input", ".input_scale", ".weight.absmax", ".weight._data", ".SCB",
    ".weight.quant_map", ".weight_qdata", "scaled_fp8",
)  # fmt: skip


def quantized_as(spec: ComponentSpec) -> str | None:
    """Return how the component is quantized, such as `bitsandbytes nf4`; None if it is not.

    Examples:
        >>> from sdcompress.sources.spec import parameter
        >>> tensors = {"fc.weight": parameter((8, 8), "F8_E4M3")}
        >>> quantized_as(ComponentSpec("unet", "diffusers", "UNet2DConditionModel", {}, tensors))
        'fp8 (e4m3)'
    """
    if is_quantized(spec.config):
        return _method_of(spec.config["quantization_config"])
    for name, tensor in spec.tensors.items():
        if name.endswith("weight") and tensor.dtype in _EIGHT_BITS:
            return _EIGHT_BITS[tensor.dtype]
    return None


def scale_in(names: list[str]) -> str | None:
    """Return the first name that a scale or another tensor of quantized weights has; None if there is none."""
    return next((name for name in names if name.endswith(_SCALES) or ".quant_state." in name), None)


def what_to_do(component: str, format_name: str) -> str:
    """Return an error message: why a step cannot use the component, and what to do."""
    return (
        f"{component} is quantized already ({format_name}); start from the original weights, or leave {component} out "
        f"of the recipe to keep it as it is"
    )


def copy_component(source: Source, component: str, folder: Path) -> bool:
    """Copy a component's weights, shard index and config.json into `folder`, byte for byte.

    Files of a variant lose its name, since artifacts have none.

    Returns:
        False if nothing was copied, since the weights are not in files of the component's own folder.
    """
    files = sorted({where.file for where in source.tensors[component].values()})
    if source.path is None or any(file.parent != source.path / component for file in files):
        return False
    for file in files:
        shutil.copyfile(file, folder / _plain_name(file.name))
    shutil.copyfile(source.path / component / "config.json", folder / "config.json")
    if len(files) > 1:
        variant = variant_of(files[0].name)
        for index in (source.path / component).iterdir():
            if is_shard_index(index.name) and _index_variant(index.name) == variant:
                content = json.loads(index.read_text(encoding="utf-8"))
                content["weight_map"] = {name: _plain_name(file) for name, file in content["weight_map"].items()}
                plain = index.name.replace(f".{variant}.json", ".json") if variant else index.name
                (folder / plain).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return True


def _plain_name(file: str) -> str:
    variant = variant_of(file)
    return file.replace(f".{variant}", "", 1) if variant else file


def _index_variant(file: str) -> str:
    return file.partition(".index.")[2].removesuffix("json").removesuffix(".")


def _method_of(quantization: Mapping[str, Any]) -> str:
    method = str(quantization["quant_method"])
    if method == "bitsandbytes":
        four = quantization.get("load_in_4bit") or quantization.get("_load_in_4bit")
        return f"bitsandbytes {quantization.get('bnb_4bit_quant_type', 'fp4')}" if four else "bitsandbytes int8"
    kind = quantization.get("quant_type") or quantization.get("weights_dtype") or quantization.get("weights")
    return f"{method} {kind}" if isinstance(kind, str) else method
