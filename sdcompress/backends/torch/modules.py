"""Modules that hold a weight as codes and dequantize it when they run, one layer at a time.

They are subclasses of the layers they replace, so that code that asks for a layer's class (PEFT when it adds a LoRA,
diffusers' loaders) finds it. `weight` is computed each time it is read, and cannot be written.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sdcompress.backends.torch.computed_weight import ComputedWeight
from sdcompress.backends.torch.integer_linear import integer_linear
from sdcompress.backends.torch.packaging import packed_specs, rounds_inputs
from sdcompress.backends.torch.unpacking import dequantize_stored, logical, pick_rows
from sdcompress.errors import ArtifactError
from sdcompress.files.torch_tensors import TORCH_DTYPE
from sdcompress.quant import scales
from sdcompress.quant.format import QuantFormat
from sdcompress.quant.grid_format import GridFormat
from sdcompress.sources.spec import TensorSpec, parameter
from sdcompress.sources.tensor_names import name_in_model

PIECE = 2**22  # weights dequantized at a time: few enough to stay in a CPU's last-level cache until they are used
OUTPUT_SCALE = "scalar_embed_scale"  # of Gemma's embeddings in transformers 5, which multiply their rows with it
PIECE_ROWS = 64  # a piece has a multiple of this number of rows, like the kernels' blocks


class QuantizedLayer(nn.Module):
    """A layer whose weight is stored in the parts of its format; each part is a buffer of that name."""

    codes: torch.Tensor
    rounds_input = False

    def __init__(self, original: nn.Module, fmt: QuantFormat):
        nn.Module.__init__(self)  # not the original class's, which would create a weight
        weight = original.weight
        assert isinstance(weight, torch.Tensor)
        self.format = fmt
        self.shape = tuple(weight.shape)
        device = weight.device if weight.device.type == "meta" else torch.device("cpu")
        for name, spec in packed_specs("", fmt, parameter(self.shape, "F32"), stock=False).items():
            self.register_buffer(name.removeprefix("."), _empty(spec, device))
        bias = getattr(original, "bias", None)
        self.bias = bias if isinstance(bias, nn.Parameter) else None

    @property
    def stored(self) -> dict[str, torch.Tensor]:
        """Part -> tensor as the file has it."""
        return {name: value for name, value in self._buffers.items() if value is not None}

    @property
    def compute_dtype(self) -> torch.dtype:
        """The floating-point type of the stored parts."""
        return next(value.dtype for value in self.stored.values() if value.is_floating_point())

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weight, for inputs that are not rotated."""
        from sdcompress.quant.compose import restored

        weight = restored(logical(self.stored, self.format, self.shape), self.compute_dtype)
        return weight.as_subclass(ComputedWeight)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the dequantized weight, for rotated inputs if the format rotates."""
        return dequantize_stored(self.stored, self.format, self.shape, dtype)

    def pieces(self, dtype: torch.dtype, groups: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield the dequantized weight and bias: some output channels at a time on a CPU, else all at once."""
        count, columns = self.shape[0], math.prod(self.shape[1:])
        whole = self.codes.device.type != "cpu" or torch.compiler.is_compiling() or groups > 1
        if whole or count * columns <= PIECE or not isinstance(self.format, GridFormat):
            yield self.dequantized(dtype), self.bias
            return
        rows = -(-count // -(-count * columns // PIECE))
        rows += -rows % PIECE_ROWS
        for start in range(0, count, rows):
            part = slice(start, min(start + rows, count))
            stored, fmt = pick_rows(self.stored, self.format, part)
            shape = (part.stop - start, *self.shape[1:])
            yield dequantize_stored(stored, fmt, shape, dtype), None if self.bias is None else self.bias[part]

    def rotated(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Return the input for the dequantized weight: rotated, if the format rotates. Axis `dim` has the channels."""
        if not self.format.hadamard:
            return x
        from sdcompress.quant.corrections.hadamard import block_size, rotated_input

        return rotated_input(x, dim, block_size(self.shape[1]))

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, format={self.format.label}" + (", int8 inputs" if self.rounds_input else "")


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc, override]
    """y = x W^T + b; with `rounds_input` in 8-bit integers (see integer_linear.py)."""

    def __init__(self, original: nn.Linear, fmt: QuantFormat):
        super().__init__(original, fmt)
        self.in_features, self.out_features = original.in_features, original.out_features

    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        x = self.rotated(x, -1)
        if self.rounds_input:
            scale = scales.value(self.stored["scale"], self.stored.get("scale_step"), torch.float32)
            return integer_linear(x, self.codes, scale, self.bias)
        return _joined([F.linear(x, weight, bias) for weight, bias in self.pieces(x.dtype)], -1)


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[misc, override]
    """A two-dimensional convolution with the original's stride, padding, dilation and groups."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """Return a plain convolution for the arguments of nn.Conv2d: PEFT calls the layer's class to make a LoRA's."""
        if not arguments or isinstance(arguments[0], nn.Module):  # no arguments: copying and unpickling
            return super().__new__(cls)
        return nn.Conv2d(*arguments, **options)

    def __init__(self, original: nn.Conv2d, fmt: QuantFormat):
        super().__init__(original, fmt)
        if original.padding_mode != "zeros":
            raise ArtifactError(f"convolutions with padding_mode {original.padding_mode} are not supported")
        self.in_channels, self.out_channels = original.in_channels, original.out_channels
        self.kernel_size, self.stride = original.kernel_size, original.stride
        self.padding, self.dilation, self.groups = original.padding, original.dilation, original.groups
        self.padding_mode, self.transposed = original.padding_mode, original.transposed
        self.output_padding = original.output_padding

    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        x = self.rotated(x, 1)
        outputs = [
            F.conv2d(x, _laid_out_as(weight, x), bias, self.stride, self.padding, self.dilation, self.groups)
            for weight, bias in self.pieces(x.dtype, self.groups)
        ]
        return _joined(outputs, 1)


class QuantizedEmbedding(QuantizedLayer, nn.Embedding):  # type: ignore[override]
    """Rows of a table; only the requested rows are dequantized."""

    def __init__(self, original: nn.Embedding, fmt: QuantFormat):
        super().__init__(original, fmt)
        self.num_embeddings, self.embedding_dim = original.num_embeddings, original.embedding_dim
        self.padding_idx, self.max_norm, self.norm_type = original.padding_idx, original.max_norm, original.norm_type
        self.scale_grad_by_freq, self.sparse = original.scale_grad_by_freq, original.sparse
        self.output_scale = float(getattr(original, OUTPUT_SCALE, 1.0))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = ids.reshape(-1)
        picked, fmt = pick_rows(self.stored, self.format, rows)
        values = dequantize_stored(picked, fmt, (rows.numel(), self.embedding_dim), self.compute_dtype)
        values = self.rotated(values, -1).view(*ids.shape, self.embedding_dim)
        return values if self.output_scale == 1 else values * values.new_full((), self.output_scale)


class TiedEmbedding(nn.Module):
    """The second place of a quantized embedding. Files have the codes once, under the name of the first place.

    Loaders look for the tensors of each module, and would add empty codes here if this were the same module again.
    """

    def __init__(self, embedding: QuantizedEmbedding):
        super().__init__()
        self._embedding = (embedding,)  # a tuple, so that it is not a submodule

    @property
    def weight(self) -> torch.Tensor:
        """The weight of the embedding."""
        return self._embedding[0].weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self._embedding[0](ids)  # type: ignore[no-any-return]


def replace_layers(model: nn.Module, formats: Mapping[str, QuantFormat], dynamic: Collection[str] = ()) -> None:
    """Replace layers of the model by quantized modules.

    Args:
        formats: layer -> format, with the names that files have.
        dynamic: the layers that round their inputs too; all are linear and in 8 bits.

    Raises:
        ArtifactError: the model has no such layer, or a format does not fit a layer.
    """
    for name, fmt in formats.items():
        place = name_in_model(model, name)
        if place is None:
            raise ArtifactError(f"{type(model).__name__} has no layer {name}, which its config lists")
        original = model.get_submodule(place)
        layer = _quantized(original, fmt, name)
        if name in dynamic:
            if not isinstance(layer, QuantizedLinear) or not rounds_inputs(fmt):
                raise ArtifactError(f"{name} is in {fmt.label}, whose inputs cannot be rounded as its config says")
            layer.rounds_input = True
        others = _tied_places(model, place, original)
        set_layer(model, place, layer)
        for other in others:
            _set_tied(model, other, layer, name)


def _tied_places(model: nn.Module, name: str, original: nn.Module) -> list[str]:
    """Return the other places of the module called `name`: T5's `shared` is `encoder.embed_tokens` too.

    In transformers 5 they are two modules, which the class ties once weights are loaded.
    """
    said = getattr(model, "_tied_weights_keys", None)
    tied = {target for target, source in said.items() if source == f"{name}.weight"} if isinstance(said, dict) else ()
    return [
        place
        for place, module in model.named_modules(remove_duplicate=False)
        if place != name and (module is original or f"{place}.weight" in tied)
    ]


def _set_tied(model: nn.Module, place: str, layer: nn.Module, name: str) -> None:
    """Put the quantized embedding `layer`, called `name`, in another place too; nothing is left to tie."""
    if not isinstance(layer, QuantizedEmbedding):
        raise ArtifactError(f"{place} is the same module as {name}, which only embeddings can be")
    set_layer(model, place, TiedEmbedding(layer))
    model._tie_weights = lambda: None  # type: ignore[assignment]  # transformers 4; it would write the weight
    model._tied_weights_keys = None  # type: ignore[assignment]
    if hasattr(model, "all_tied_weights_keys"):  # transformers 5: tensor -> the one whose values it shares
        model.all_tied_weights_keys = {}  # type: ignore[assignment]


def set_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the model's module `name` by `layer`."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def cast_scales(model: nn.Module) -> None:
    """Convert scales, palettes and low-rank parts to the model's floating-point type.

    Loaders do this with weights; not all do with buffers. Codes, and scales that are codes, stay.
    """
    dtype = next(tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            for name, value in module.stored.items():
                if value.is_floating_point():
                    setattr(module, name, value.to(dtype))


def _quantized(original: nn.Module, fmt: QuantFormat, name: str) -> QuantizedLayer:
    if isinstance(original, nn.Linear):
        return QuantizedLinear(original, fmt)
    if isinstance(original, nn.Conv2d):
        return QuantizedConv2d(original, fmt)
    if isinstance(original, nn.Embedding):
        if type(original).forward is not nn.Embedding.forward and not hasattr(original, OUTPUT_SCALE):
            raise ArtifactError(f"{name} is a {type(original).__name__}, which computes more than rows of its weight")
        return QuantizedEmbedding(original, fmt)
    raise ArtifactError(f"{name} is a {type(original).__name__}, which {fmt.label} has no module for")


def _joined(outputs: list[torch.Tensor], dim: int) -> torch.Tensor:
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim)


def _laid_out_as(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return a convolution's weight in the memory layout that its kernel needs for the input `x`."""
    if x.device.type == "cpu":
        return weight  # unpacked codes are channels_last, which is as fast there for any input
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return weight.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _empty(spec: TensorSpec, device: torch.device) -> torch.Tensor:
    return torch.empty(spec.shape, dtype=TORCH_DTYPE[spec.dtype], device=device)
