"""Names and configs of quantized weights in files for torch.

There are two layouts. `bitsandbytes` is for one of its formats on linear layers alone, in its own serialization, which
stock diffusers and transformers open. `sdcompress` is for everything else: a layer's `weight` becomes `codes`, `scale`
and the other parts of its format, and the component's config.json lists the format of each layer. safetensors has no
type below one byte, so such codes are packed; each output channel has whole bytes of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdcompress.quant.format import QuantFormat, QuantizedTensor
from sdcompress.quant.packing import PLANES, pack, row_bytes
from sdcompress.sources.pruned_config import SCHEMA as PRUNING_SCHEMA
from sdcompress.sources.pruned_config import pruning_of
from sdcompress.sources.spec import SUB_BYTE_BITS, ComponentSpec, TensorSpec, layers_of

if TYPE_CHECKING:
    import torch

QUANT_METHOD = "sdcompress"
CONFIG_SCHEMA = 1
DYNAMIC = "dynamic_activations"  # in quantization_config: the layers that round their inputs as they run
INTEGER_FORMATS = ("int8", "int8-unsaturated")
_TORCH_NAME = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float32"}


def package_specs(spec: ComponentSpec, formats: Mapping[str, QuantFormat], target: str = "torch") -> ComponentSpec:
    """Return the component with the layers of `formats` quantized: its tensors as stored, and its config.

    For target onnx, codes are not packed; the ONNX backend packs them.
    """
    stock = is_stock(spec, formats)
    tensors: dict[str, TensorSpec] = {}
    for name, tensor in spec.tensors.items():
        layer = name.removesuffix(".weight")
        if layer in formats and name.endswith(".weight"):
            tensors.update(packed_specs(layer, formats[layer], tensor, stock, target))
        else:
            tensors[name] = tensor
    config = {**spec.config, "quantization_config": _quantization_config(spec, formats, stock)}
    return spec.replace(tensors=tensors, config=config)


def package(
    tensor: QuantizedTensor, layer: str, weight: TensorSpec, stock: bool, target: str = "torch"
) -> dict[str, torch.Tensor]:
    """Return tensor name -> tensor as stored, in the order and with the specs of `package_specs`."""
    import torch

    fmt = tensor.format
    if not stock:
        parts = tensor.parts()
        if target == "torch" and _is_packed(fmt.stored(weight)["codes"]):
            parts["codes"] = pack_codes(parts["codes"], fmt.bits)
        return {f"{layer}.{part}": value for part, value in parts.items()}
    assert tensor.scale is not None
    if fmt.bits == 8:
        row_major = torch.zeros((), dtype=torch.uint8)  # bitsandbytes' code for its only weight layout today
        return {f"{layer}.weight": tensor.codes, f"{layer}.SCB": tensor.scale, f"{layer}.weight_format": row_major}
    state = torch.frombuffer(bytearray(_state_json(fmt, weight)), dtype=torch.uint8)
    return {
        f"{layer}.weight": tensor.codes,
        f"{layer}.weight.absmax": tensor.scale,
        f"{layer}.weight.quant_map": fmt.code_values(),  # type: ignore[attr-defined]
        f"{layer}.weight.quant_state.bitsandbytes__{fmt.name}": state,
    }


def is_stock(spec: ComponentSpec, formats: Mapping[str, QuantFormat]) -> bool:
    """Return whether bitsandbytes' serialization can hold the component.

    It needs one of its formats, on linear layers alone; no quantized layer that the list of skipped ones matches too;
    and modules of the shapes that a stock config states.
    """
    if pruning_of(spec.config):
        return False
    kinds = {layer.name: layer.kind for layer in layers_of(spec)}
    if {fmt.library for fmt in formats.values()} != {"bitsandbytes"} or len(set(formats.values())) != 1:
        return False
    skipped = _skipped_linears(spec, formats)
    return all(kinds[name] == "linear" and not _stock_skips(skipped, name) for name in formats)


def layer_formats(config: Mapping[str, Any]) -> dict[str, str] | None:
    """Return layer -> format label of a component in sdcompress's own layout; None for any other config."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping) or quantization.get("quant_method") != QUANT_METHOD:
        return None
    return dict(quantization["layers"])


def rounds_inputs(fmt: QuantFormat) -> bool:
    """Return whether linear layers in this format can multiply in integers: int8 codes, one scale a channel."""
    return fmt.library == "sdcompress" and fmt.name in INTEGER_FORMATS and fmt.group_size is None and not fmt.rank


def dynamic_layers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the layers of a component in sdcompress's own layout that round their inputs when they run."""
    quantization = config.get("quantization_config")
    return tuple(quantization.get(DYNAMIC, ())) if isinstance(quantization, Mapping) else ()


def packed_specs(
    layer: str, fmt: QuantFormat, weight: TensorSpec, stock: bool, target: str = "torch"
) -> dict[str, TensorSpec]:
    """Return tensor name -> spec of what replaces the layer's `weight`, in file order."""
    stored = fmt.stored(weight)
    if not stock:
        codes = stored["codes"]
        if target == "torch" and _is_packed(codes):
            row = row_bytes(math.prod(codes.shape[1:]), fmt.bits)
            stored = {**stored, "codes": TensorSpec((codes.shape[0], row), "U8", codes.parameters)}
        return {f"{layer}.{part}": spec for part, spec in stored.items()}
    if fmt.bits == 8:
        return {
            f"{layer}.weight": stored["codes"],
            f"{layer}.SCB": stored["scale"],
            f"{layer}.weight_format": TensorSpec((), "U8", 0),
        }
    return {
        f"{layer}.weight": stored["codes"],
        f"{layer}.weight.absmax": stored["scale"],
        f"{layer}.weight.quant_map": TensorSpec((16,), "F32", 0),
        f"{layer}.weight.quant_state.bitsandbytes__{fmt.name}": TensorSpec((len(_state_json(fmt, weight)),), "U8", 0),
    }


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return codes [out, in, ...] below 8 bits as bytes [out, row bytes]; signed codes are shifted to start at 0.

    A convolution's codes are packed with the input channels last, [out, kh, kw, in]: its kernels are fastest in this
    order, and a group of input channels is contiguous in it.
    """
    import torch

    rows = codes.movedim(1, -1).flatten(1)
    return pack((rows + 2 ** (bits - 1)).to(torch.uint8) if codes.dtype == torch.int8 else rows, bits)


def unpack_codes(packed: torch.Tensor, bits: int, shape: tuple[int, ...], signed: bool) -> torch.Tensor:
    """Return the codes [out, in, ...] that `pack_codes` packed, int8 if `signed`, else uint8."""
    rows = unpack_rows(packed, bits, math.prod(shape[1:]), signed)
    return rows.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)  # a convolution's: channels_last in memory


def unpack_rows(packed: torch.Tensor, bits: int, count: int, signed: bool) -> torch.Tensor:
    """Return codes [rows, count] in the order in which they are packed, int8 if `signed`, else uint8.

    It computes what `quant.packing.unpack` does in fewer, larger operations, each of which a GPU has to be told to
    start, and does not write into slices, which torch.compile cannot trace.
    """
    import torch

    from sdcompress.quant.constants import table

    codes = None
    start = shift = 0
    for plane in PLANES[bits]:
        size = row_bytes(count, plane)
        shifts = table(tuple(range(0, 8, plane)), torch.uint8, packed.device).view(-1, 1)
        runs = (packed[:, start : start + size].unsqueeze(1) >> shifts) & (2**plane - 1)  # [rows, 8 / plane, size]
        part = runs.view(packed.shape[0], -1)[:, :count]
        codes = part if codes is None else torch.add(codes, part, alpha=2**shift)
        start, shift = start + size, shift + plane
    assert codes is not None
    return codes.view(torch.int8) - 2 ** (bits - 1) if signed else codes


def _is_packed(codes: TensorSpec) -> bool:
    return codes.dtype in SUB_BYTE_BITS


def _state_json(fmt: QuantFormat, weight: TensorSpec) -> bytes:
    """Return bitsandbytes' QuantState as it is packed: JSON in a uint8 tensor."""
    state = {
        "quant_type": fmt.name,
        "blocksize": fmt.block_size,  # type: ignore[attr-defined]
        "dtype": _TORCH_NAME[weight.dtype],
        "shape": list(weight.shape),
    }
    return json.dumps(state).encode()


def _quantization_config(spec: ComponentSpec, formats: Mapping[str, QuantFormat], stock: bool) -> dict[str, Any]:
    if not stock:
        labels = {name: formats[name].label for name in sorted(formats)}
        plain = {"quant_method": QUANT_METHOD, "schema_version": CONFIG_SCHEMA, "layers": labels}
        pruning = pruning_of(spec.config)
        return plain | ({"schema_version": PRUNING_SCHEMA, "pruning": pruning.to_dict()} if pruning else {})
    fmt = next(iter(formats.values()))
    dtypes = {tensor.dtype for tensor in spec.tensors.values()} & set(_TORCH_NAME)
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": fmt.bits == 4,
        "load_in_8bit": fmt.bits == 8,
        "bnb_4bit_quant_type": fmt.name if fmt.bits == 4 else "fp4",
        "bnb_4bit_compute_dtype": _TORCH_NAME[max(dtypes, key=lambda dtype: _bytes_of(spec, dtype))],
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_use_double_quant": False,
        "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_skip_modules": _skipped_linears(spec, formats),
    }


def _bytes_of(spec: ComponentSpec, dtype: str) -> int:
    return sum(tensor.size_bytes for tensor in spec.tensors.values() if tensor.dtype == dtype)


def _skipped_linears(spec: ComponentSpec, formats: Mapping[str, QuantFormat]) -> list[str]:
    return sorted(layer.name for layer in layers_of(spec) if layer.kind == "linear" and layer.name not in formats)


def _stock_skips(skipped: list[str], layer: str) -> bool:
    """Return whether llm_int8_skip_modules skips a layer (`_replace_with_bnb_linear` of diffusers and transformers)."""
    leaf = layer.rpartition(".")[2]
    return leaf in skipped or any(f"{key}." in layer or key == layer for key in skipped)
