"""Opens an artifact and compares each component's output with the same component holding its dequantized weights.

    python benchmarks/reload_check.py ARTIFACT

Prints one JSON line: component -> relative difference |a - b| / |b|. Loading, module replacement and packing may add
a few float32 roundings at most. The dequantized model is built apart: a stock module of the component's
class, its state dict filled from the safetensors file by the formats' own `dequantize`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from sdcompress import open_pipeline
from sdcompress.backends.torch.packaging import layer_formats, unpack_codes
from sdcompress.quant.compose import restored
from sdcompress.quant.format import QuantizedTensor
from sdcompress.quant.grid_format import GridFormat
from sdcompress.quant.registry import from_label
from sdcompress.sources.opening import open_source
from sdcompress.sources.tensor_names import canonical_name, name_in_model


def main() -> None:
    artifact = Path(sys.argv[1])
    pipeline = open_pipeline(artifact, device="cpu", dtype="float32")
    differences = {}
    for name, spec in open_source(str(artifact)).components.items():
        formats = layer_formats(spec.config)
        if formats is None:
            continue
        module = getattr(pipeline, name)
        with torch.no_grad():
            compressed = output_of(name, module)
            reference = output_of(name, dequantized(module, artifact, name, formats))
        differences[name] = float((compressed - reference).norm() / reference.norm())
    print(json.dumps(differences))


def dequantized(module: torch.nn.Module, artifact: Path, name: str, formats: dict[str, str]) -> torch.nn.Module:
    """A stock module of the same class with the artifact's weights dequantized to float32."""
    from sdcompress.files.torch_tensors import read_tensor

    source = open_source(str(artifact))
    state: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, torch.Tensor]] = {layer: {} for layer in formats}
    for tensor, where in source.tensors[name].items():
        value = read_tensor(where)
        layer, _, leaf = tensor.rpartition(".")
        if layer in formats and leaf != "bias":
            parts[layer][leaf] = value
        else:
            state[tensor] = value.float()
    fresh = stock_module(module)
    shapes = {
        canonical_name(type(fresh).__name__, key): tuple(value.shape) for key, value in fresh.state_dict().items()
    }
    for layer, stored in parts.items():
        fmt, shape = from_label(formats[layer]), shapes[f"{layer}.weight"]
        if isinstance(fmt, GridFormat) and fmt.bits < 8:
            stored["codes"] = unpack_codes(stored["codes"], fmt.bits, shape, fmt.signed)
        state[f"{layer}.weight"] = restored(QuantizedTensor.from_parts(stored, fmt, shape), torch.float32)
    fresh.load_state_dict({str(name_in_model(fresh, tensor)): value for tensor, value in state.items()})
    return fresh.eval()


def stock_module(module: torch.nn.Module) -> torch.nn.Module:
    if hasattr(type(module), "load_config"):  # diffusers
        config = {key: value for key, value in module.config.items() if key != "quantization_config"}
        return type(module).from_config(config)  # type: ignore[no-any-return]
    config = type(module.config).from_dict(
        {key: value for key, value in module.config.to_dict().items() if key != "quantization_config"}
    )
    return type(module)(config)


def output_of(name: str, module: torch.nn.Module) -> torch.Tensor:
    """The component's main output on small seeded inputs."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    config: Any = module.config
    if name == "unet":
        states = noise(2, 8, config.cross_attention_dim)
        return module(noise(2, config.in_channels, 16, 16), 500, encoder_hidden_states=states).sample
    if name == "vae":
        return module.decode(noise(1, config.latent_channels, 8, 8)).sample
    if name.startswith("text_encoder"):
        return module(torch.arange(8).unsqueeze(0)).last_hidden_state
    if name == "safety_checker":
        size = config.vision_config.image_size
        return module.visual_projection(module.vision_model(noise(1, 3, size, size))[1])
    raise ValueError(f"{name}: no sample input is known")


if __name__ == "__main__":
    main()
