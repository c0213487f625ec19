"""What a quantization format is, and what quantizing a weight gives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sdcompress.spec import Layer, TensorSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QuantFormat:
    """One way of storing a weight in few bits. A subclass in a file of `quant/` is found by its `name`.

    `group_size` counts the weights that share a scale (None: the format's own default). Its meaning along the
    tensor is the format's: see `describe`.
    """

    group_size: int | None = None

    name: ClassVar[str]
    bits: ClassVar[int]
    kinds: ClassVar[frozenset[str]]  # layer kinds it can store
    targets: ClassVar[frozenset[str]]  # backends that can package it
    library: ClassVar[Literal["sdcompress", "bitsandbytes"]] = "sdcompress"
    keeps_sensitive: ClassVar[bool]  # whether sensitive layers are left alone unless a recipe says otherwise
    alternative: ClassVar[str] = ""  # for targets it cannot serve

    @property
    def label(self) -> str:
        """`int8`, or `int8/64` for groups of 64."""
        return self.name if self.group_size is None else f"{self.name}/{self.group_size}"

    @abstractmethod
    def problem(self, layer: Layer) -> str | None:
        """Why `layer` cannot have this format with this group size, or None."""

    @abstractmethod
    def stored(self, weight: TensorSpec) -> dict[str, TensorSpec]:
        """Field of QuantizedTensor -> spec of what quantizing `weight` stores; `parameters` on the codes."""

    @abstractmethod
    def quantize(self, weight: torch.Tensor) -> QuantizedTensor:
        """The weight rounded to the nearest code. Raises ValueError on NaN or Inf."""

    @abstractmethod
    def dequantize(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        """The weight its codes stand for, in `dtype` and the weight's shape."""


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight as codes: `codes` and `scale` as the format lays them out, `shape` of the weight."""

    codes: torch.Tensor
    scale: torch.Tensor
    format: QuantFormat
    shape: tuple[int, ...]
    zero_point: torch.Tensor | None = None
    low_rank: tuple[torch.Tensor, torch.Tensor] | None = None

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        return self.format.dequantize(self, dtype)


def from_label(label: str, known: Mapping[str, type[QuantFormat]]) -> QuantFormat:
    """The format a label such as `int8` or `int8/64` stands for. Raises KeyError when its name is not among `known`."""
    name, _, group = label.partition("/")
    return known[name](int(group) if group else None)


def check_finite(weight: torch.Tensor) -> None:
    """Raises ValueError when the weight has a NaN or an infinity, which no code can stand for."""
    if not bool(weight.isfinite().all()):
        bad = int((~weight.isfinite()).sum())
        raise ValueError(f"{bad} of {weight.numel()} values are NaN or infinite")


def divisors_near(size: int, candidates: Sequence[int] = (16, 32, 64, 128, 256)) -> list[int]:
    """The usual group sizes that divide `size`."""
    return [group for group in candidates if size % group == 0]
