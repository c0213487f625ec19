"""bitsandbytes' formats through bitsandbytes' own functions: nf4 and fp4 (QLoRA, arXiv:2305.14314), and llm-int8.

llm-int8 is the vector-wise quantization of LLM.int8 (arXiv:2208.07339, section 2). Linear layers are stored as
bitsandbytes stores them, convolutions as linear layers of [out, in*kh*kw].
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from sdcompress.errors import Problem
from sdcompress.quant.format import QuantFormat, QuantizedTensor, check_finite
from sdcompress.quant.formats.normal_float import LEVELS
from sdcompress.sources.spec import CONVOLUTIONS, Layer, TensorSpec

if TYPE_CHECKING:
    import torch

# The values of the 16 codes of each format, as bitsandbytes has them.
# fmt: off
VALUES = {
    "nf4": LEVELS,
    "fp4": (
        0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
        0.0, -0.0052083334885537624, -0.6666666865348816, -1.0, -0.3333333432674408, -0.5, -0.1666666716337204, -0.25,
    ),
}
# fmt: on
CHUNK = 2**20  # weights rounded at once, a multiple of every block size
BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)  # for which bitsandbytes has kernels


@dataclass(frozen=True)
class FourBit(QuantFormat):
    """nf4 or fp4; blocks of `group_size` (64) consecutive weights of the flattened tensor share a float32 maximum."""

    kinds = frozenset({"linear"}) | CONVOLUTIONS
    library = "bitsandbytes"

    @property
    def block_size(self) -> int:
        """Weights of a block."""
        return self.group_size or BLOCK_SIZES[0]

    def problem(self, layer: Layer, target: str = "torch") -> Problem | None:
        if self.block_size in BLOCK_SIZES:
            return None
        usable = ", ".join(map(str, BLOCK_SIZES))
        what = f"{self.block_size} is no block size of bitsandbytes ({layer.name}); use one of {usable}"
        return Problem("group_size", what)

    def stored(self, weight: TensorSpec) -> dict[str, TensorSpec]:
        count = math.prod(weight.shape)
        return {
            "codes": TensorSpec(((count + 1) // 2, 1), "U8", weight.parameters),
            "scale": TensorSpec((-(-count // self.block_size),), "F32", 0),
        }

    def quantize(self, weight: torch.Tensor) -> QuantizedTensor:
        import torch

        check_finite(weight)
        chunks = weight.contiguous().view(-1).split(CHUNK)  # blocks do not cross chunks: same codes, less memory
        with _without_compiling():
            parts = [
                _functional().quantize_4bit(chunk, blocksize=self.block_size, quant_type=self.name) for chunk in chunks
            ]
        codes = torch.cat([codes for codes, _ in parts])
        return QuantizedTensor(codes, torch.cat([state.absmax for _, state in parts]), self, tuple(weight.shape))

    def dequantize(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        import torch

        assert tensor.scale is not None
        if tensor.codes.is_cuda and not torch.compiler.is_compiling():
            return _dequantize_on_gpu(self, tensor, dtype)
        # bitsandbytes' CPU kernels are compiled for every shape, or wrong where a block is longer than a row (0.50.2 on
        # AVX512). This lookup is neither, and torch.compile fuses it.
        values = self.code_values(tensor.codes.device, dtype)
        pairs = torch.cartesian_prod(values, values)  # [256, 2]: high half byte first
        count = math.prod(tensor.shape)
        weights = torch.nn.functional.embedding(tensor.codes.view(-1).int(), pairs).view(-1)[:count]
        scale = tensor.scale.to(dtype)
        if count % self.block_size:
            scale = scale.repeat_interleave(self.block_size)[:count]
            return (weights * scale).view(tensor.shape)
        return (weights.view(-1, self.block_size) * scale.unsqueeze(1)).view(tensor.shape)

    def code_values(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the values of the 16 codes, [16], by default in float32 on the CPU. Do not modify them."""
        import torch

        from sdcompress.quant.constants import table

        return table(VALUES[self.name], dtype or torch.float32, device or torch.device("cpu"))


def _dequantize_on_gpu(fmt: FourBit, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
    functional = _functional()
    assert tensor.scale is not None
    state = functional.QuantState(
        absmax=tensor.scale.float(),
        shape=tensor.shape,  # type: ignore[arg-type]
        code=fmt.code_values(tensor.scale.device),
        blocksize=fmt.block_size,
        quant_type=fmt.name,
        dtype=dtype,
    )
    return functional.dequantize_4bit(tensor.codes, state).view(tensor.shape)


@cache  # called whenever a layer runs
def _functional() -> Any:
    """Import bitsandbytes.functional without its warning that an optional CPU kernel package is missing."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes.functional")
    finally:
        logger.setLevel(level)


@contextmanager
def _without_compiling() -> Iterator[None]:
    """Run bitsandbytes' CPU functions as they are, not through torch.compile, which would compile every shape."""
    import torch

    if not hasattr(torch.compiler, "set_stance"):  # torch before 2.6
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@dataclass(frozen=True)
class LLMInt8(QuantFormat):
    """int8 rows with a float32 maximum each; bitsandbytes also rounds activations, except for outliers."""

    kinds = frozenset({"linear"}) | CONVOLUTIONS
    library = "bitsandbytes"

    def problem(self, layer: Layer, target: str = "torch") -> Problem | None:
        if self.group_size is None:
            return None
        return Problem("group_size", f"llm-int8 has one scale per row and no groups ({layer.name})")

    def stored(self, weight: TensorSpec) -> dict[str, TensorSpec]:
        return {
            "codes": TensorSpec(weight.shape, "I8", weight.parameters),
            "scale": TensorSpec((weight.shape[0],), "F32", 0),
        }

    def quantize(self, weight: torch.Tensor) -> QuantizedTensor:
        import torch

        check_finite(weight)
        rows = weight.flatten(1).to(torch.float16)  # [out, in*kh*kw]; the kernel takes float16 only
        codes, row_maxima, _ = _functional().int8_vectorwise_quant(rows)
        return QuantizedTensor(codes.view(weight.shape), row_maxima, self, tuple(weight.shape))

    def dequantize(self, tensor: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        assert tensor.scale is not None
        scale = (tensor.scale / 127).to(dtype)
        return tensor.codes * scale.view(-1, *[1] * (tensor.codes.dim() - 1))


FORMATS = (FourBit("nf4", 4), FourBit("fp4", 4), LLMInt8("llm-int8", 8))
