"""Dequantizing the stored parts of a weight for a layer that is about to run.

On a CPU, memory traffic takes a layer's time: 860 M weights pass through here at each step of Stable Diffusion 1.x.
So some rows at a time are unpacked, converted to float32, shifted and scaled in a buffer that stays in the cache, and
only the result is written to memory. On other devices starting an operation takes longest, so all rows are dequantized
at once, in as few operations as there can be; and so they are for torch.compile, which fuses them into one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from sdcompress.backends.torch.packaging import unpack_codes, unpack_rows
from sdcompress.quant import scales
from sdcompress.quant.format import QuantFormat, QuantizedTensor
from sdcompress.quant.grid_format import GridFormat
from sdcompress.quant.packing import unpack

CHUNK = 2**18  # weights of one chunk for a thread: 1 MiB in float32; with fewer, the overhead of operations grows
SHARED = frozenset({"palette", "low_rank_down"})  # parts without a row for each output channel


def logical(parts: Mapping[str, torch.Tensor], fmt: QuantFormat, shape: tuple[int, ...]) -> QuantizedTensor:
    """Return the quantized tensor that is stored as these parts."""
    codes = parts["codes"]
    if isinstance(fmt, GridFormat) and fmt.bits < 8:
        codes = unpack_codes(codes, fmt.bits, shape, fmt.signed)
    return QuantizedTensor.from_parts({**parts, "codes": codes}, fmt, shape)


def pick_rows(
    parts: Mapping[str, torch.Tensor], fmt: QuantFormat, rows: slice | torch.Tensor
) -> tuple[dict[str, torch.Tensor], QuantFormat]:
    """Return the parts of some output channels, and the format in which these are stored."""
    picked = {name: value if name in SHARED else value[rows] for name, value in parts.items()}
    palette, shared_by = picked.get("palette"), fmt.group_size
    if palette is None or shared_by is None:
        return picked, fmt
    if isinstance(rows, slice):
        rows = torch.arange(rows.start, rows.stop, device=palette.device)
    return {**picked, "palette": palette[rows // shared_by]}, replace(fmt, group_size=1)  # each row has its own palette


def dequantize_stored(
    parts: Mapping[str, torch.Tensor], fmt: QuantFormat, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Return the weight in `dtype`; its input channels stay rotated if the format rotates them.

    A convolution's is channels_last in memory if its codes are packed, else it has the layout of the codes.
    """
    if not isinstance(fmt, GridFormat):
        return logical(parts, fmt, shape).dequantize(dtype)
    on_cpu = parts["codes"].device.type == "cpu" and not torch.compiler.is_compiling()
    return (by_chunks if on_cpu else at_once)(parts, fmt, shape, dtype)


@dataclass(frozen=True)
class _MemoryOrder:
    """The order of an output channel's weights in memory."""

    shape: tuple[int, ...]
    channels_last: bool

    def as_weight(self, rows: torch.Tensor) -> torch.Tensor:
        """Return [rows, columns] in memory as rows of the weight, [rows, in, ...]."""
        if self.channels_last:
            return rows.view(rows.shape[0], *self.shape[2:], self.shape[1]).movedim(-1, 1)
        return rows.view(rows.shape[0], *self.shape[1:])

    def as_rows(self, weight: torch.Tensor) -> torch.Tensor:
        """Return rows of the weight as [rows, columns] in memory."""
        return (weight.movedim(1, -1) if self.channels_last else weight).flatten(1)


def at_once(
    parts: Mapping[str, torch.Tensor], fmt: GridFormat, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Do what `dequantize_stored` does on a GPU."""
    tensor = QuantizedTensor.from_parts(parts, fmt, shape)
    layout, order = fmt.layout(shape), _MemoryOrder(shape, _is_channels_last(tensor.codes, fmt, shape))
    levels, zero = fmt.levels_of(tensor, dtype), fmt.zero_of(tensor, dtype)
    if fmt.bits == 8:
        rows = order.as_rows(tensor.codes)  # [out, columns] in memory
    else:
        rows = unpack_rows(tensor.codes, fmt.bits, math.prod(shape[1:]), fmt.signed)
    if levels is not None and levels.dim() == 1:
        rows = levels.index_select(0, rows.int().view(-1)).view(rows.shape)
    elif levels is not None:
        rows = levels.gather(1, rows.long())
    values = layout.split(order.as_weight(rows))
    if zero is not None:
        values = values - layout.spread(zero)  # which converts codes, as scales do
    if tensor.scale is not None:
        values = values * layout.spread(scales.value(tensor.scale, tensor.scale_step, dtype))
    weight = values.view(shape)
    up, down = tensor.low_rank_up, tensor.low_rank_down
    if up is not None and down is not None:
        down = order.as_rows(down.view(-1, *shape[1:])).to(dtype)
        weight = order.as_weight(order.as_rows(weight).addmm_(up.to(dtype), down))
    return weight


def by_chunks(
    parts: Mapping[str, torch.Tensor], fmt: GridFormat, shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Do what `dequantize_stored` does on a CPU."""
    tensor = QuantizedTensor.from_parts(parts, fmt, shape)
    out, columns, layout = shape[0], math.prod(shape[1:]), fmt.layout(shape)
    order = _MemoryOrder(shape, _is_channels_last(tensor.codes, fmt, shape))
    levels, zero = fmt.levels_of(tensor, dtype), fmt.zero_of(tensor, dtype)
    scale = None if tensor.scale is None else scales.value(tensor.scale, tensor.scale_step, dtype)
    pairs = _pairs(levels) if levels is not None and fmt.bits == 4 and dtype == torch.bfloat16 else None
    up, down = tensor.low_rank_up, tensor.low_rank_down
    if up is not None and down is not None:
        up, down = up.to(dtype), order.as_rows(down.view(-1, *shape[1:])).to(dtype)

    weight = torch.empty((out, columns), dtype=dtype)
    size = min(out, max(1, CHUNK * torch.get_num_threads() // max(1, columns)))
    buffer = None if dtype == torch.float32 else torch.empty((size, columns))
    for start in range(0, out, size):
        rows = slice(start, min(start + size, out))
        target, codes = weight[rows], tensor.codes[rows]
        steps = target if buffer is None else buffer[: rows.stop - start]
        if pairs is not None:
            _look_up_pairs(codes, _of(pairs, rows), steps)
        else:
            codes = order.as_rows(codes) if fmt.bits == 8 else unpack(codes, fmt.bits, columns)
            if levels is not None:
                _look_up(codes, _of(levels, rows), steps)
            elif fmt.signed and fmt.bits < 8:
                steps.copy_(codes.view(torch.int8).sub_(2 ** (fmt.bits - 1)))
            else:
                steps.copy_(codes)
        values = layout.split(order.as_weight(steps))
        if zero is not None:
            values.sub_(layout.spread(zero[rows]))
        if scale is not None:
            values.mul_(layout.spread(scale[rows]))
        if buffer is not None:
            target.copy_(steps)
        if up is not None and down is not None:
            target.addmm_(up[rows], down)
    return order.as_weight(weight)


def _look_up(codes: torch.Tensor, levels: torch.Tensor, steps: torch.Tensor) -> None:
    """Write the levels of codes [rows, columns] into `steps`; `levels` is [levels] or [rows, levels]."""
    index = _index(codes, levels)
    torch.index_select(levels.reshape(-1).float(), 0, index, out=steps.view(-1))


def _pairs(levels: torch.Tensor) -> torch.Tensor:
    """Return a table from a byte of two 4-bit codes to their bfloat16 levels in one int32, the lower code's below.

    The table is [256] or [rows, 256]. A look-up takes as long for any size, so two levels in one take half the time.
    """
    bits = levels.view(torch.int16).to(torch.int32)
    return ((bits.unsqueeze(-1) << 16) | (bits.unsqueeze(-2) & 0xFFFF)).flatten(-2)


def _look_up_pairs(packed: torch.Tensor, pairs: torch.Tensor, steps: torch.Tensor) -> None:
    """Write the levels of packed codes [rows, bytes] into `steps` [rows, columns], float32."""
    words = torch.index_select(pairs.reshape(-1), 0, _index(packed, pairs)).view(packed.shape)
    bits, half = steps.view(torch.int32), packed.shape[1]  # the lower codes of bytes are the first half of the row
    torch.bitwise_left_shift(words, 16, out=bits[:, :half])
    torch.bitwise_and(words[:, : steps.shape[1] - half], -(2**16), out=bits[:, half:])


def _index(codes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the flat indices of codes [rows, columns] into a flattened table, [entries] or [rows, entries]."""
    index = codes.to(torch.int32)
    if table.dim() == 2:
        index += torch.arange(0, table.numel(), table.shape[1], dtype=torch.int32).unsqueeze(1)
    return index.view(-1)


def _of(table: torch.Tensor, rows: slice) -> torch.Tensor:
    return table if table.dim() == 1 else table[rows]


def _is_channels_last(codes: torch.Tensor, fmt: GridFormat, shape: tuple[int, ...]) -> bool:
    if len(shape) != 4:
        return False
    return fmt.bits < 8 or (codes.is_contiguous(memory_format=torch.channels_last) and not codes.is_contiguous())
