"""A linear layer multiplied in 8-bit integers: the weight as its codes, each token of the input rounded when it runs.

y = s_x s_w (X W^T) + b with a scale s_x for each token and s_w for each output channel: the vector-wise products of
LLM.int8 (arXiv:2208.07339, section 2.1), here for all values. Sums are exact, in 32 bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

LARGEST = 127
# Outputs (or inputs, if they are more) computed at a time on a CPU, so that sums are scaled while in the cache.
PIECE = 2**19
PIECE_ROWS = 32  # a piece has a multiple of this number of rows, like the kernels' blocks
FEWEST_ROWS = 32  # cuBLAS's integer kernel takes 17 or more; time embeddings and pooled texts have fewer
SMALLEST_SCALE = 1e-12  # the scale of a token of zeros, whose codes are 0


def integer_linear(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return x W^T + b in the type of `x`.

    Args:
        x: [..., in].
        codes: int8 codes of W, [out, in].
        scale: scales of W, [out].
        bias: [out] or None.
    """
    rows = x.reshape(-1, x.shape[-1])
    scale, bias = scale.float(), None if bias is None else bias.float()
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        output = _scaled(rows, codes, scale, bias).to(x.dtype)
    else:
        output = torch.empty(rows.shape[0], codes.shape[0], dtype=x.dtype)
        size = max(PIECE // max(codes.shape) // PIECE_ROWS, 1) * PIECE_ROWS
        for start in range(0, rows.shape[0], size):
            output[start : start + size] = _scaled(rows[start : start + size], codes, scale, bias)
    return output.view(*x.shape[:-1], codes.shape[0])


def _scaled(rows: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the outputs of rows [rows, in] as [rows, out], float32."""
    exact = rows.float()
    step = exact.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST_SCALE) / LARGEST
    rounded = (exact / step).round_().to(torch.int8)
    output = _sums(rounded, codes).mul_(step).mul_(scale)
    return output if bias is None else output.add_(bias)


def _sums(rounded: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return X W^T of two int8 matrices as float32, by the device's integer kernel if it has one for their sizes."""
    if rounded.device.type == "cpu":
        return torch._int_mm(rounded, codes.T).float()
    if rounded.device.type == "cuda" and codes.shape[0] % 8 == 0 and codes.shape[1] % 8 == 0:  # as cuBLAS requires
        return padded_sums(rounded, codes).float()
    return F.linear(rounded.float(), codes.float())  # exact up to 1,040 columns, whose sums are below 2^24


def padded_sums(rounded: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return X W^T as int32. Rows of zeros are added to X if it has fewer than FEWEST_ROWS."""
    missing = max(FEWEST_ROWS - rounded.shape[0], 0)
    padded = F.pad(rounded, (0, 0, 0, missing)) if missing else rounded
    return torch._int_mm(padded, codes.T)[: rounded.shape[0]]
