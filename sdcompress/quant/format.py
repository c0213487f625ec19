"""What a quantization format is, and the quantized tensor that it makes of a weight."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sdcompress.errors import Problem
from sdcompress.sources.spec import Layer, TensorSpec

if TYPE_CHECKING:
    import torch

PIECE = 2**19  # weights processed at once: 2 MiB in float32, which stay in a CPU's cache from one pass to the next
# Options in the order of a label, each with its word there.
OPTIONS = {"scale_bits": "scale", "rank": "rank", "hadamard": "hadamard"}


@dataclass(frozen=True)
class QuantFormat(ABC):
    """One way of storing a weight in few bits, with its options.

    A module of `quant/formats/` offers its formats in a tuple `FORMATS`, or as a subclass that sets `name` and `bits`.

    Args:
        name: its name in recipes.
        bits: bits of a code.
        group_size: weights that share a scale or palette, counted as the subclass says; None: the subclass's default.
        scale_bits: 16, or 8 where the scales are quantized too (double quantization).
        rank: rank of a low-rank correction in float16 (`corrections/low_rank.py`); 0: none.
        hadamard: whether blocks of input channels are rotated (`corrections/hadamard.py`).
    """

    name: str
    bits: int
    group_size: int | None = None
    scale_bits: int = 16
    rank: int = 0
    hadamard: bool = False

    kinds: ClassVar[frozenset[str]]  # kinds of layers that it can store
    library: ClassVar[Literal["sdcompress", "bitsandbytes"]] = "sdcompress"
    options: ClassVar[frozenset[str]] = frozenset()  # those of OPTIONS that it has
    roundings: ClassVar[frozenset[str] | None] = frozenset({"nearest"})  # names of roundings that it allows; None: all
    sums_fit_16_bits: ClassVar[bool] = False  # whether two products with unsigned 8-bit activations fit into 16 bits

    @property
    def label(self) -> str:
        """The name with the options: `int8`, `int8/64` for groups of 64, `int4/64+scale8+rank16+hadamard`."""
        text = self.name if self.group_size is None else f"{self.name}/{self.group_size}"
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in OPTIONS and value != option.default:
                text += f"+{OPTIONS[option.name]}" + ("" if value is True else str(value))
        return text

    @property
    def targets(self) -> frozenset[str]:
        """The backends that can package it."""
        return frozenset({"torch"})

    @property
    def keeps_sensitive(self) -> bool:
        """Whether sensitive layers stay in their precision unless a recipe says otherwise."""
        return self.bits < 8

    @property
    def alternative(self) -> str:
        """Name of the format to use where this one cannot be used."""
        return "int4" if self.bits <= 4 else "int8"

    def kinds_for(self, target: str) -> frozenset[str]:
        """Return the kinds of layers that it can store for that target."""
        return self.kinds

    @abstractmethod
    def problem(self, layer: Layer, target: str = "torch") -> Problem | None:
        """Return what keeps `layer` from having this format for that target; its field is `group_size` or an option."""

    @abstractmethod
    def stored(self, weight: TensorSpec) -> dict[str, TensorSpec]:
        """Return the specs of the parts that quantizing `weight` stores, by name; `parameters` counts on the codes."""

    @abstractmethod
    def quantize(self, weight: torch.Tensor) -> QuantizedTensor:
        """Return the weight rounded to the nearest codes, without corrections.

        Args:
            weight: [out, in] or [out, in, kh, kw], of any floating-point type.

        Raises:
            ValueError: the weight has NaN or infinite values.
        """

    @abstractmethod
    def dequantize(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight that the codes stand for, in `dtype` and the weight's shape.

        A low-rank correction is added. A rotation of input channels is not undone; `compose.restored` does that.
        """


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight as codes, with what gives the codes their meaning. The format decides on the shapes.

    Args:
        codes: one for each weight.
        scale: of each group or block; None where a palette gives the values.
        format: the format, which dequantizes.
        shape: of the weight, [out, in] or [out, in, kh, kw].
        zero_point: of each group, in the format's unit.
        scale_step: [out] float16; scales of 8 bits are multiples of it.
        palette: [palettes, levels] float16.
        low_rank_up: [out, rank] float16.
        low_rank_down: [rank, in*kh*kw] float16.
    """

    codes: torch.Tensor
    scale: torch.Tensor | None
    format: QuantFormat
    shape: tuple[int, ...]
    zero_point: torch.Tensor | None = None
    scale_step: torch.Tensor | None = None
    palette: torch.Tensor | None = None
    low_rank_up: torch.Tensor | None = None
    low_rank_down: torch.Tensor | None = None

    @classmethod
    def from_parts(cls, parts: Mapping[str, torch.Tensor], fmt: QuantFormat, shape: tuple[int, ...]) -> QuantizedTensor:
        """Return the tensor with these parts, by the names of its fields."""
        named: dict[str, Any] = {"scale": None, **parts}
        return cls(format=fmt, shape=shape, **named)

    def parts(self) -> dict[str, torch.Tensor]:
        """Return all that has to be stored, by name, in the order of `QuantFormat.stored`."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("format", "shape")}
        return {name: value for name, value in values.items() if value is not None}

    def rows(self, start: int, stop: int) -> QuantizedTensor:
        """Return the output channels from `start` up to `stop`, as far as there are any."""
        shared = ("palette", "low_rank_down")
        parts = {name: value if name in shared else value[start:stop] for name, value in self.parts().items()}
        return self.from_parts(parts, self.format, (parts["codes"].shape[0], *self.shape[1:]))

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight that the codes stand for; see `QuantFormat.dequantize`."""
        return self.format.dequantize(self, dtype)


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no value is NaN or infinite."""
    # A finite sum has finite summands, and takes a tenth of the time of testing each value in float16.
    return all(
        math.isfinite(float(piece.float().sum())) or bool(piece.isfinite().all())
        for piece in tensor.reshape(-1).split(PIECE)
    )


def overflows(result: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Return whether casting `tensor` to `result` made a finite value infinite.

    Examples:
        >>> import torch
        >>> weight = torch.tensor([1.0, 70000.0])
        >>> overflows(weight.half(), weight), overflows(weight.bfloat16(), weight)
        (True, False)
    """
    import torch

    return not is_finite(result) and not torch.equal(result.isfinite(), tensor.isfinite())


def check_finite(weight: torch.Tensor) -> None:
    """Raise ValueError when a value is NaN or infinite, since no code can stand for it."""
    if not is_finite(weight):
        bad = int((~weight.isfinite()).sum())
        raise ValueError(f"{bad} of {weight.numel()} values are NaN or infinite")
