"""What a quantization format is, and what quantizing a weight gives."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sdcompress.errors import Problem
from sdcompress.sources.spec import Layer, TensorSpec

if TYPE_CHECKING:
    import torch

PIECE = 2**19  # weights worked on at once: 2 MiB in float32, which CPUs' caches hold between one pass and the next

# A format's options in the order of its label, each with the word that begins it there; flags have no number.
_OPTIONS = {"scale_bits": "scale", "rank": "rank", "hadamard": "hadamard"}


@dataclass(frozen=True)
class QuantFormat:
    """One way of storing a weight in few bits. A subclass in a file of `quant/` is found by its `name`.

    `group_size` counts the weights that share a scale (None: the format's own default). Its meaning along the
    tensor is the format's: see its docstring. The other fields are options that `options` says the format takes.
    """

    group_size: int | None = None
    scale_bits: int = 16  # 8: the scales are rounded to 8 bits themselves (double quantization)
    rank: int = 0  # of a low-rank correction in float16 (corrections/low_rank.py); 0: none
    hadamard: bool = False  # whether blocks of input channels are rotated (corrections/hadamard.py)

    name: ClassVar[str]
    bits: ClassVar[int]
    kinds: ClassVar[frozenset[str]]  # layer kinds it can store
    targets: ClassVar[frozenset[str]]  # backends that can package it
    library: ClassVar[Literal["sdcompress", "bitsandbytes"]] = "sdcompress"
    options: ClassVar[frozenset[str]] = frozenset()
    roundings: ClassVar[frozenset[str] | None] = frozenset({"nearest"})  # ways of choosing codes it allows; None: all
    keeps_sensitive: ClassVar[bool]  # whether sensitive layers are left alone unless a recipe says otherwise
    alternative: ClassVar[str] = ""  # for targets it cannot serve
    sums_fit_16_bits: ClassVar[bool] = False  # whether two products with unsigned 8-bit activations add up within them

    @property
    def label(self) -> str:
        """`int8`, `int8/64` for groups of 64, `int4/64+scale8+rank16+hadamard` with every option set."""
        text = self.name if self.group_size is None else f"{self.name}/{self.group_size}"
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in _OPTIONS and value != option.default:
                text += f"+{_OPTIONS[option.name]}" + ("" if value is True else str(value))
        return text

    def kinds_for(self, target: str) -> frozenset[str]:
        """The layer kinds it can store for that target."""
        return self.kinds

    @abstractmethod
    def problem(self, layer: Layer, target: str = "torch") -> Problem | None:
        """Return what keeps `layer` from having this format for that target; its field is `group_size` or an option."""

    @abstractmethod
    def stored(self, weight: TensorSpec) -> dict[str, TensorSpec]:
        """Part of QuantizedTensor -> spec of what quantizing `weight` stores; `parameters` on the codes."""

    @abstractmethod
    def quantize(self, weight: torch.Tensor) -> QuantizedTensor:
        """The weight rounded to the nearest code. Raises ValueError on NaN or Inf."""

    @abstractmethod
    def dequantize(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        """The weight its codes stand for, in `dtype` and the weight's shape.

        A low-rank correction is added; a rotation of input channels is not undone (corrections/hadamard.py does that).
        """


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight as codes and what gives them their meaning, as the format lays these out; `shape` of the weight."""

    codes: torch.Tensor
    scale: torch.Tensor | None  # None: a palette says what codes stand for
    format: QuantFormat
    shape: tuple[int, ...]
    zero_point: torch.Tensor | None = None
    scale_step: torch.Tensor | None = None  # [out]: what scales of 8 bits are multiples of
    palette: torch.Tensor | None = None  # [palettes, levels]
    low_rank_up: torch.Tensor | None = None  # [out, rank]
    low_rank_down: torch.Tensor | None = None  # [rank, in * kh * kw]

    @classmethod
    def from_parts(cls, parts: Mapping[str, torch.Tensor], fmt: QuantFormat, shape: tuple[int, ...]) -> QuantizedTensor:
        """The tensor whose parts, by name, are these."""
        named: dict[str, Any] = {"scale": None, **parts}
        return cls(format=fmt, shape=shape, **named)

    def parts(self) -> dict[str, torch.Tensor]:
        """Name -> tensor of all that has to be stored, in the order of `QuantFormat.stored`."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("format", "shape")}
        return {name: value for name, value in values.items() if value is not None}

    def rows(self, start: int, stop: int) -> QuantizedTensor:
        """The same of some output channels alone, as far as there are any."""
        shared = ("palette", "low_rank_down")
        parts = {name: value if name in shared else value[start:stop] for name, value in self.parts().items()}
        return self.from_parts(parts, self.format, (parts["codes"].shape[0], *self.shape[1:]))

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        return self.format.dequantize(self, dtype)


def from_label(label: str, known: Mapping[str, type[QuantFormat]]) -> QuantFormat:
    """The format a label such as `int8` or `int4/64+scale8` stands for.

    Raises KeyError when its name is not among `known`, ValueError when an option is none.
    """
    name, *options = label.split("+")
    name, _, group = name.partition("/")
    fmt = known[name](int(group) if group else None)
    for text in options:
        word = text.rstrip("0123456789")
        option = next((option for option, said in _OPTIONS.items() if said == word), None)
        if option is None:
            raise ValueError(f"{label}: no option {text!r}")
        value: Any = int(text[len(word) :]) if text != word else True
        fmt = replace(fmt, **{option: value})
    return fmt


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether there is no NaN and no infinity in the tensor."""
    # A sum that is finite has finite summands, and takes a tenth of the time of looking at each in float16.
    return all(
        math.isfinite(float(piece.float().sum())) or bool(piece.isfinite().all())
        for piece in tensor.reshape(-1).split(PIECE)
    )


def overflows(result: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether casting `tensor` to `result` made a finite value infinite."""
    import torch

    return not is_finite(result) and not torch.equal(result.isfinite(), tensor.isfinite())


def check_finite(weight: torch.Tensor) -> None:
    """Raises ValueError when the weight has a NaN or an infinity, which no code can stand for."""
    if not is_finite(weight):
        bad = int((~weight.isfinite()).sum())
        raise ValueError(f"{bad} of {weight.numel()} values are NaN or infinite")


def divisors_near(size: int, candidates: Sequence[int] = (16, 32, 64, 128, 256)) -> list[int]:
    """The usual group sizes that divide `size`."""
    return [group for group in candidates if size % group == 0]
