"""Components in bitsandbytes' serialization, opened on a CPU.

diffusers' loader needs a GPU, though bitsandbytes runs on a CPU too. This does the work of that loader
(`BnB4BitDiffusersQuantizer`, `BnB8BitDiffusersQuantizer`) on the CPU, for diffusers and transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdcompress.backends.torch.modules import QuantizedLinear, set_layer
from sdcompress.errors import ArtifactError
from sdcompress.quant.registry import from_label
from sdcompress.sources.empty_model import empty_model, tie_weights
from sdcompress.sources.tensor_names import canonical_name, name_in_model


def open_component(folder: Path, library: str, class_name: str, dtype: torch.dtype) -> nn.Module:
    """Return a component of a pipeline folder as a module on the CPU, with floating-point tensors in `dtype`.

    Raises:
        ArtifactError: its weights do not fit its class.
    """
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quantization = config["quantization_config"]
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state.update(load_file(file))
    model = empty_model(library, class_name, config)
    state = {_name_in_model(model, canonical_name(class_name, name)): value for name, value in state.items()}
    layers = [name.removesuffix(".SCB") for name in state if name.endswith(".SCB")]
    layers += [name.partition(".weight.quant_state.")[0] for name in state if ".weight.quant_state." in name]
    for layer in layers:
        set_layer(model, layer, _linear(model.get_submodule(layer), layer, state, quantization, dtype))
    rest = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    _, unexpected = model.load_state_dict(rest, strict=False, assign=True)
    missing = [name for name, value in tie_weights(model).named_parameters() if value.is_meta]
    if missing or unexpected:
        raise ArtifactError(f"{folder}: does not fit {class_name}: {(missing or unexpected)[0]} is missing or unknown")
    model.eval()
    model.requires_grad_(False)
    return model


def _name_in_model(model: nn.Module, name: str) -> str:
    """Return a tensor's name in `model`; packed ones end in `.weight.absmax`, `.SCB` and so on."""
    layer = name.partition(".weight")[0] if ".weight" in name else name.rpartition(".")[0]
    return (name_in_model(model, layer) or layer) + name[len(layer) :] if layer else name


def _linear(
    original: nn.Module, layer: str, state: dict[str, torch.Tensor], quantization: dict[str, Any], dtype: torch.dtype
) -> nn.Module:
    """Return bitsandbytes' module for a layer, and remove the layer's packed tensors from `state`."""
    import bitsandbytes as bnb

    if not isinstance(original, nn.Linear):
        raise ArtifactError(f"{layer}: is a {type(original).__name__}, and bitsandbytes stores linear layers alone")
    codes = state.pop(f"{layer}.weight")
    if quantization.get("load_in_8bit"):
        eight = bnb.nn.Linear8bitLt(
            original.in_features,
            original.out_features,
            original.bias is not None,
            has_fp16_weights=False,
            threshold=quantization["llm_int8_threshold"],
        )
        state.pop(f"{layer}.weight_format", None)
        eight.weight = bnb.nn.Int8Params(
            codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=state.pop(f"{layer}.SCB")
        )
        eight.source_cls = type(original)
        return eight
    stats = {name: state.pop(name) for name in list(state) if name.startswith(f"{layer}.weight.")}
    packed = bnb.functional.QuantState.from_dict(stats, device=torch.device("cpu"))
    if packed.nested:
        raise ArtifactError(f"{layer}: has nested (double-quantized) scales, which are not supported on a CPU")
    fmt = from_label(f"{packed.quant_type}/{packed.blocksize}")
    # Not bnb.nn.Linear4bit: on a CPU it runs torch.compile for each shape, minutes for a UNet. The values are the same.
    four = QuantizedLinear(original, fmt)
    four.codes, four.scale = codes, packed.absmax.to(dtype)
    return four
