"""How each peer quantizes a component: its own documented calls, on a float16 component, in place.

Each function takes the component and a contender's options and returns the component to put in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OUTLIER_THRESHOLD = 6.0  # LLM.int8's, as BitsAndBytesConfig has it


def with_bitsandbytes(component: torch.nn.Module, options: Mapping[str, Any]) -> torch.nn.Module:
    """Linear layers replaced by bitsandbytes' own, as by diffusers' loader, which refuses a machine without a GPU."""
    import bitsandbytes
    import torch

    for owner, name, layer in _linear_layers(component):
        bias = layer.bias is not None
        weight = layer.weight.detach()
        if options["format"] == "int8":
            new = bitsandbytes.nn.Linear8bitLt(
                layer.in_features, layer.out_features, bias, has_fp16_weights=False, threshold=OUTLIER_THRESHOLD
            )
            new.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            new = bitsandbytes.nn.Linear4bit(
                layer.in_features, layer.out_features, bias, compute_dtype=torch.float32, quant_type=options["format"]
            )
            new.weight = bitsandbytes.nn.Params4bit(
                weight,
                requires_grad=False,
                quant_type=options["format"],
                compress_statistics=options.get("double", False),
            )
        if bias:
            new.bias = layer.bias
        setattr(owner, name, new)
        with torch.compiler.set_stance("force_eager"):  # quantizes; it would call a compiler for every shape
            new.to("cpu")
    return component


def with_torchao(component: torch.nn.Module, options: Mapping[str, Any]) -> torch.nn.Module:
    """`quantize_` with the config of that name; convolutions too where `convolutions` is set."""
    import torch
    from torchao import quantization

    given = {name: value for name, value in options.items() if name == "int4_packing_format"}
    if "int4_packing_format" in given:
        from torchao.quantization.quantize_.workflows import Int4PackingFormat

        given["int4_packing_format"] = Int4PackingFormat[given["int4_packing_format"]]
        component = component.to(torch.bfloat16)  # all that this format takes
    if "bits" in options:
        given["weight_dtype"] = getattr(torch, f"int{options['bits']}")
        given["granularity"] = quantization.PerGroup(options["group_size"])
    if options.get("hqq"):
        from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

        given["intx_choose_qparams_algorithm"] = IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY
    config = getattr(quantization, options["config"])(**given)
    kinds = (torch.nn.Linear, torch.nn.Conv2d) if options.get("convolutions") else (torch.nn.Linear,)
    group = options.get("group_size", 1)

    def fits(module: torch.nn.Module, _: str) -> bool:
        return isinstance(module, kinds) and module.weight.shape[1] % group == 0

    quantization.quantize_(component, config, filter_fn=fits)
    return component


def with_quanto(component: torch.nn.Module, options: Mapping[str, Any]) -> torch.nn.Module:
    """`quantize` and `freeze`: linear layers and convolutions."""
    from optimum import quanto

    chosen = {"optimizer": getattr(quanto, options["optimizer"])()} if "optimizer" in options else {}
    quanto.quantize(component, weights=getattr(quanto, options["weights"]), **chosen)
    quanto.freeze(component)
    return component


def with_sdnq(component: torch.nn.Module, options: Mapping[str, Any]) -> torch.nn.Module:
    """`sdnq_post_load_quant` with an SDNQConfig (given as arguments, it drops `scale_dtype`)."""
    import torch
    from sdnq import SDNQConfig, sdnq_post_load_quant

    torch.manual_seed(0)  # its SVD is a randomized one
    return sdnq_post_load_quant(component, quantization_config=SDNQConfig(**options), torch_dtype=torch.float16)


QUANTIZE: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "bitsandbytes": with_bitsandbytes,
    "torchao": with_torchao,
    "quanto": with_quanto,
    "sdnq": with_sdnq,
}


def save(component: Any, library: str, folder: Path) -> int:
    """Bytes of the weight files that the component's own way of saving writes."""
    folder.mkdir(parents=True)
    if library == "quanto":  # its README: safetensors of the state dict
        from safetensors.torch import save_file

        save_file(component.state_dict(), folder / "model.safetensors")
    elif library == "torchao":  # its tensors do not go into safetensors
        component.save_pretrained(folder, safe_serialization=False)
    elif library == "sdnq":
        from sdnq import save_sdnq_model

        save_sdnq_model(component, str(folder))
    else:
        component.save_pretrained(folder)
    kinds = (".safetensors", ".bin")
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in kinds)


def compute_in_float32(component: Any) -> None:
    """Leaves the codes as they are; scales, biases and all other float16 becomes float32, and so the arithmetic."""
    import torch

    module: Any
    for module in component.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if hasattr(type(tensor), "__tensor_flatten__"):
                    tensors[name] = torch.nn.Parameter(_with_float32_scales(tensor), requires_grad=False)
                elif tensor.dtype in (torch.float16, torch.bfloat16):
                    tensor.data = tensor.data.float()
        state = getattr(module._parameters.get("weight"), "quant_state", None)
        if state is not None:  # bitsandbytes' 4 bits: the dtype in which weights come out
            state.dtype = torch.float32
        if hasattr(module, "sdnq_dequantizer"):
            module.sdnq_dequantizer.result_dtype = torch.float32


def _with_float32_scales(tensor: Any) -> Any:
    """The same subclass over the same codes; torchao keeps its dtype among the attributes, quanto in the scale."""
    import torch

    names, attributes = tensor.__tensor_flatten__()
    parts = {}
    for name in names:
        part = getattr(tensor, name)
        parts[name] = part.float() if part.dtype in (torch.float16, torch.bfloat16) else part
    wide = {name: torch.float32 if value == tensor.dtype else value for name, value in attributes.items()}
    return type(tensor).__tensor_unflatten__(parts, wide, None, None)


def _linear_layers(component: torch.nn.Module) -> list[tuple[torch.nn.Module, str, Any]]:
    """Owner, name and layer of each linear layer."""
    import torch

    return [
        (owner, name, layer)
        for owner in component.modules()
        for name, layer in owner.named_children()
        if type(layer) is torch.nn.Linear
    ]
